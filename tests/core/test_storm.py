"""Storms drawn from a seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from manyhands.core.storm import KINDS, draw


@given(
    st.integers(0, 99), st.sets(st.sampled_from(KINDS), min_size=1), st.floats(0.5, 10), st.floats(20, 200)
)
def test_a_storm_can_come_again_and_has_as_much_of_each_kind(
    seed: int, kinds: set[str], every: float, seconds: float
) -> None:
    chosen = sorted(kinds)
    faults = draw(seed, chosen, every, seconds, lease=10.0)
    assert faults == draw(seed, chosen, every, seconds, lease=10.0)
    assert all(0 < a.at < b.at < seconds for a, b in pairwise(faults))
    assert len(faults) >= seconds / every / 1.2 - 2
    times = Counter(fault.kind for fault in faults)
    assert max(times.values(), default=0) - min((times[kind] for kind in chosen), default=0) <= 1


def test_who_is_stopped_sometimes_sleeps_through_its_lease_and_sometimes_not() -> None:
    lasts = {fault.seconds for fault in draw(1, ["stop"], 1.0, 60.0, lease=4.0)}
    assert lasts == {1.0, 6.0}
