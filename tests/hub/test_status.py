"""What the hub says of a run at a glance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from manyhands.core.messages import Beat
from manyhands.hub.status import exchange_status


@pytest.mark.parametrize(
    ("neighbours", "strategy", "told"),
    [
        ([3, 3, 3, 3], "DiLoCo(every=10)", "shared memory"),
        ([1, 1], "EveryStep(encode=chain(Quantize(8)))", "shared memory, where nothing is encoded"),
        ([0, 0], "EveryStep(encode=chain(Quantize(8)))", "sockets"),
        ([1, 1, 0], "EveryStep()", "shared memory within hosts, sockets between them"),
        ([1, None], "EveryStep()", ""),
        ([3, 3, 3, 2], "EveryStep()", ""),
        ([2, 2, 2, 0], "EveryStep()", "shared memory within hosts, sockets between them"),
        ([0], "EveryStep()", ""),
    ],
)
def test_it_says_how_slices_travel_once_all_members_know(
    neighbours: list[int | None], strategy: str, told: str
) -> None:
    members = [SimpleNamespace(beat=Beat(neighbours=number)) for number in neighbours]
    hub: Any = SimpleNamespace(
        coordinator=SimpleNamespace(membership=SimpleNamespace(survivors=lambda: members), strategy=strategy)
    )
    assert exchange_status(hub) == told


def test_it_says_over_how_many_connections_where_it_takes_several() -> None:
    members = [SimpleNamespace(beat=Beat(neighbours=0, streams=number)) for number in (1, 3)]
    hub: Any = SimpleNamespace(
        coordinator=SimpleNamespace(membership=SimpleNamespace(survivors=lambda: members), strategy="")
    )
    assert exchange_status(hub) == "sockets, up to 3 to each member"
