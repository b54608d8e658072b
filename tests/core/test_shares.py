"""How large slices are where lines are unequal."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands.core.hosts import Hosts
from manyhands.core.messages import Beat, decode_for_hub, encode
from manyhands.core.shares import WHOLE, better, shares_of

RATES = st.lists(st.floats(1e5, 1e9), min_size=3, max_size=8)


def apart(count: int) -> Hosts:
    return Hosts([""] * count)


def seconds(shares: tuple[float, ...], rates: list[float]) -> float:
    """The longest that any line is busy in a round over a vector of one byte."""
    whole = sum(shares)
    return max(
        (1 + (len(rates) - 2) * share / whole) / rate for share, rate in zip(shares, rates, strict=True)
    )


@given(RATES, st.data())
def test_no_other_shares_make_a_round_shorter(rates: list[float], data: st.DataObject) -> None:
    best = shares_of(rates, apart(len(rates)))
    other = data.draw(st.lists(st.integers(0, 9), min_size=len(rates), max_size=len(rates)).filter(any))
    assert seconds(best, rates) <= seconds(tuple(other), rates) * 1.02
    assert abs(sum(best) - WHOLE) <= len(rates)


@given(RATES)
def test_a_slower_line_never_carries_more(rates: list[float]) -> None:
    shares = shares_of(rates, apart(len(rates)))
    ordered = [share for _, share in sorted(zip(rates, shares, strict=True))]
    assert all(a <= b for a, b in pairwise(ordered))


def test_the_members_of_a_host_share_its_line() -> None:
    hosts = Hosts(["a", "a", "b", "c"])
    first, second, *others = shares_of([5e6, 5e6, 1e7, 1e7], hosts)
    assert first == second
    assert others == [pytest.approx(2 * first, abs=2)] * 2


@pytest.mark.parametrize(
    ("rates", "machines"),
    [([1e6, 1e7], ["", ""]), ([0.0, 1e7, 1e7], ["", "", ""]), ([1e6, 1e7, 1e7], ["a", "a", "b"])],
    ids=["two hosts carry the same whatever is combined where", "a line is not known", "two hosts of three"],
)
def test_shares_are_equal_where_others_would_not_help(rates: list[float], machines: list[str]) -> None:
    assert shares_of(rates, Hosts(machines)) == ()


def test_shares_change_for_a_line_ten_times_slower_and_not_for_noise() -> None:
    hosts = apart(4)
    assert better((), [1e6, 1e7, 1e7, 1e7], hosts)
    assert not better((), [9e6, 1e7, 1.1e7, 1e7], hosts)
    assert not better(shares_of([1e6, 1e7, 1e7, 1e7], hosts), [1.1e6, 0.9e7, 1e7, 1e7], hosts)


@pytest.mark.parametrize("line", [math.nan, math.inf, -1.0])
def test_a_line_whose_rate_is_none_is_no_message(line: float) -> None:
    """No worker can make the hub compute with it."""
    with pytest.raises(msgspec.DecodeError, match=r"line"):
        decode_for_hub(encode(Beat(line=line)))
