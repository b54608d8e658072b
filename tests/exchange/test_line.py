"""How fast a member sends to other hosts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from manyhands.exchange.kernel import Progress
from manyhands.exchange.line import FAR, MOST_STREAMS, TRIAL, Line


def test_connections_that_send_at_the_same_time_share_the_line() -> None:
    assert (
        Line().measure({"b": Progress(4_000_000, 1.0, 0.0), "c": Progress(6_000_000, 1.0, 0.0)}) == 10_000_000
    )


def test_only_what_was_sent_since_the_last_measurement_counts_and_half_of_it() -> None:
    line = Line()
    line.measure({"b": Progress(10_000_000, 1.0, 0.0)})
    assert line.measure({"b": Progress(14_000_000, 2.0, 0.0)}) == 7_000_000


def test_little_says_nothing_yet_and_is_counted_later() -> None:
    line = Line()
    assert line.measure({"b": Progress(900_000, 0.09, 0.0)}) == 0
    assert line.measure({"b": Progress(2_000_000, 0.01, 0.0)}) == 0
    assert line.measure({"b": Progress(2_000_000, 0.2, 0.0)}) == 10_000_000


def test_a_connection_that_was_made_anew_counts_from_its_beginning() -> None:
    line = Line()
    line.measure({"b": Progress(10_000_000, 1.0, 0.0), "c": Progress(0, 0.0, 0.0)})
    assert line.measure({"b": Progress(5_000_000, 0.5, 0.0), "c": Progress(0, 0.0, 0.0)}) == pytest.approx(
        10_000_000
    )


def sends(line: Line, rate: Callable[[int], float], seconds: int, round_trip: float = FAR) -> None:
    """So many measurements of a line that gives this rate to so many connections."""
    sent = 0.0
    for second in range(1, seconds + 1):
        sent += rate(line.streams)
        line.measure({"b": Progress(int(sent), float(second), round_trip)})


def test_a_long_line_is_given_connections_until_one_more_makes_it_no_faster() -> None:
    line = Line()
    sends(line, lambda streams: 2e6 * min(streams, 4), 60)
    assert line.streams == 5


def test_a_line_that_one_connection_fills_is_tried_with_one_more_only() -> None:
    line = Line()
    sends(line, lambda _: 1e7, 60)
    assert line.streams == 2


def test_connections_are_bounded_and_a_short_line_has_one() -> None:
    long, short = Line(), Line()
    sends(long, lambda streams: 2e6 * streams, TRIAL * 2 * MOST_STREAMS)
    sends(short, lambda streams: 2e6 * streams, 60, round_trip=FAR / 2)
    assert (long.streams, short.streams) == (MOST_STREAMS, 1)
