"""What the hub says of a run at a glance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from manyhands.core.messages import Beat
from manyhands.hub.status import exchange_status


@pytest.mark.parametrize(
    ("neighbours", "told"),
    [
        ([3, 3, 3, 3], "shared memory"),
        ([0, 0], "sockets"),
        ([1, 1, 0], "shared memory within hosts, sockets between them"),
        ([1, None], ""),
        ([0], ""),
    ],
)
def test_it_says_how_slices_travel_once_all_members_know(neighbours: list[int | None], told: str) -> None:
    members = [SimpleNamespace(beat=Beat(neighbours=number)) for number in neighbours]
    hub: Any = SimpleNamespace(
        coordinator=SimpleNamespace(membership=SimpleNamespace(survivors=lambda: members))
    )
    assert exchange_status(hub) == told
