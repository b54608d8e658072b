"""Findings of a review: each of these fails on the code as it is."""

from __future__ import annotations

from test_coordinator import pool

from manyhands.core.coordinator import Coordinator
from manyhands.core.decisions import Ticked


def test_a_hub_that_is_restarted_while_it_is_cut_off_waits_for_who_holds_the_version_too() -> None:
    hub = Coordinator.restore(pool(2, lease=2.0).snapshot())
    for now in range(60):
        hub.handle(Ticked(), float(now))
    assert hub.state != "failed", hub.why
