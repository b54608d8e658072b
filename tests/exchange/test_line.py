"""How fast a member sends to other hosts."""

from __future__ import annotations

import pytest

from manyhands.exchange.line import Line


def test_connections_that_send_at_the_same_time_share_the_line() -> None:
    assert Line().measure({"b": (4_000_000, 1.0), "c": (6_000_000, 1.0)}) == 10_000_000


def test_only_what_was_sent_since_the_last_measurement_counts_and_half_of_it() -> None:
    line = Line()
    line.measure({"b": (10_000_000, 1.0)})
    assert line.measure({"b": (14_000_000, 2.0)}) == 7_000_000


def test_little_says_nothing_yet_and_is_counted_later() -> None:
    line = Line()
    assert line.measure({"b": (900_000, 0.09)}) == 0
    assert line.measure({"b": (2_000_000, 0.01)}) == 0
    assert line.measure({"b": (2_000_000, 0.2)}) == 10_000_000


def test_a_connection_that_was_made_anew_counts_from_its_beginning() -> None:
    line = Line()
    line.measure({"b": (10_000_000, 1.0), "c": (0, 0.0)})
    assert line.measure({"b": (5_000_000, 0.5), "c": (0, 0.0)}) == pytest.approx(10_000_000)
