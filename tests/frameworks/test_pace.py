"""When a worker has taken enough local steps, by count and by the clock."""

from __future__ import annotations

import pytest

from manyhands.frameworks import pace
from manyhands.frameworks.pace import Pace
from manyhands.sharing.rhythm import seconds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def steps_until_due(pace: Pace, clock: Clock, length: float) -> int:
    for count in range(1, 1000):
        clock.now += length
        pace.stepped()
        if pace.due:
            return count
    raise AssertionError("never due")


@pytest.mark.parametrize(("every", "fragments", "expected"), [(5, 1, 5), (6, 3, 2), (7, 3, 3)])
def test_a_number_of_steps_is_counted(every: int, fragments: int, expected: int) -> None:
    assert steps_until_due(Pace(every, fragments), Clock(), 1.0) == expected


@pytest.mark.parametrize(("length", "expected"), [(1.0, 10), (3.0, 3), (4.0, 2), (11.0, 1), (60.0, 1)])
def test_in_a_time_as_many_steps_are_taken_as_end_in_it_but_one_at_least(
    clock: Clock, length: float, expected: int
) -> None:
    pace = Pace(seconds(10))
    assert steps_until_due(pace, clock, length) == expected
    clock.now += 50.0
    pace.restart()
    assert not pace.due
    assert steps_until_due(pace, clock, length) == expected


def test_fragments_share_the_time(clock: Clock) -> None:
    assert steps_until_due(Pace(seconds(10), 5), clock, 1.0) == 2
