"""A script that hangs costs the others the time that it may be in a step, and no more."""

from __future__ import annotations

import pytest

from manyhands._version import __version__
from manyhands.core.coordinator import Coordinator
from manyhands.core.decisions import Connected, Received, Send, Ticked
from manyhands.core.hangs import hung
from manyhands.core.messages import (
    START,
    Applied,
    Beat,
    Contribution,
    Entered,
    Evicted,
    Hello,
    Ready,
    Version,
)


def pool(*steps: tuple[float, float]) -> Coordinator:
    """A hub whose members hold version 1, and have said how long they are in a step and may be."""
    hub, names = Coordinator("r", len(steps)), [str(rank) for rank in range(len(steps))]
    for name in names:
        hub.handle(Connected(Hello("r", name, name, 1, "h", 1, __version__, None, (), Ready((), "s"))), 0.0)
    for name in names:
        hub.handle(Received(name, Entered(1, START)), 0.0)
        made_of = tuple(Contribution(n, 1.0) for n in names) if name == "0" else None
        hub.handle(Received(name, Applied(Version(1, 1), "d", made_of)), 0.0)
    beat(hub, *steps)
    return hub


def beat(hub: Coordinator, *steps: tuple[float, float]) -> None:
    for rank, (step, allowed) in enumerate(steps):
        hub.handle(Received(str(rank), Beat(step=step, allowed=allowed)), 0.0)


def evicted(hub: Coordinator) -> list[str]:
    return [
        action.incarnation
        for action in hub.handle(Ticked(), 0.1)
        if isinstance(action, Send) and isinstance(action.message, Evicted)
    ]


def test_who_is_in_a_step_for_longer_than_any_member_allows_itself_is_not_waited_for() -> None:
    hub = pool((0.1, 300.0), (300.0, 300.0), (0.2, 300.0))
    assert evicted(hub) == []
    beat(hub, (0.1, 300.0), (301.0, 300.0), (0.2, 300.0))
    assert evicted(hub) == ["1"]
    assert "in one step for 301 s, where 300 s are the most" in hub.workers["1"].why


def test_the_longest_step_that_somebody_came_back_from_speaks_for_all() -> None:
    assert evicted(pool((0.1, 4000.0), (3000.0, 300.0), (3000.0, 300.0))) == []


def test_nobody_goes_while_all_are_in_a_step() -> None:
    assert evicted(pool((900.0, 300.0), (800.0, 300.0))) == []


def test_of_several_that_hang_the_one_that_has_for_longest_goes_first() -> None:
    hub = pool((400.0, 300.0), (0.0, 300.0), (500.0, 300.0))
    assert evicted(hub) == ["2"]


@pytest.mark.parametrize("lacks", ["the version", "a connection", "its place"])
def test_nobody_goes_whom_no_other_can_stand_in_for(lacks: str) -> None:
    hub = pool((400.0, 300.0), (0.0, 300.0))
    other = hub.workers["1"]
    if lacks == "the version":
        hub.workers["0"].applied = 2
    elif lacks == "a connection":
        other.connected = False
    else:
        other.state = "healing"
    assert hung(hub.membership) is None


def test_who_has_not_said_anything_yet_hangs_by_no_measure() -> None:
    assert hung(pool((0.0, 0.0), (0.0, 0.0)).membership) is None
