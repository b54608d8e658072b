"""Findings of a review: each of these fails on the code as it is."""

from __future__ import annotations

from test_coordinator import DATA, pool

from manyhands.checkpoints.credentials import without_secrets
from manyhands.core.coordinator import Coordinator
from manyhands.core.decisions import Received, Ticked
from manyhands.core.ledger import Ledger
from manyhands.core.messages import (
    Asked,
    Contribution,
    Left,
    Span,
    Version,
)


def test_a_goodbye_that_names_no_data_set_of_the_run_ends_nothing_but_itself() -> None:
    hub = pool(3)
    batch = (Span(99, 0, 0, 1), Span(0, 0, 5, 6))
    hub.handle(Received("1", Left(False, "it raised E", batch=batch)), 0.1)
    hub.handle(Received("2", Left(False, "it raised E", batch=batch)), 0.2)


def test_what_is_skipped_under_a_hub_that_took_over_is_left_out_of_later_epochs_too() -> None:
    """The hub before had leased it to be skipped, and died before that was committed."""
    ledger = Ledger()
    ledger.declare(DATA)
    bad = Span(0, 0, 3, 4)
    ledger.hold("a", [bad])
    rest = (Span(0, 0, 0, 3), Span(0, 0, 4, 20))
    ledger.commit(Version(1, 1), (Contribution("a", 19.0, rest, skipped=(bad,)),))
    assert ledger.epoch(0) == 1
    (sample,) = ledger.samples(0, 0, [(3, 4)])
    given = ledger.grant("a", Asked(0, 1, 20), rank=0, size=1)
    given += ledger.grant("a", Asked(0, 1, 20), rank=0, size=1)
    read = [pair for span in given for pair in ledger.samples(0, 1, [(span.start, span.stop)])]
    assert not any(a <= sample[0] < b for a, b in read)
    assert ledger.quarantine


def test_a_chained_url_of_a_store_is_told_without_its_secrets_too() -> None:
    assert "secret" not in without_secrets("simplecache::sftp://me:secret@host/kept")


def test_a_hub_that_is_restarted_while_it_is_cut_off_waits_for_who_holds_the_version_too() -> None:
    hub = Coordinator.restore(pool(2, lease=2.0).snapshot())
    for now in range(60):
        hub.handle(Ticked(), float(now))
    assert hub.state != "failed", hub.why
