import hashlib
import itertools
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.core.shuffle import LONGEST, Shuffle
from manyhands.errors import DataError

DIGEST = """
import hashlib
from manyhands.core.shuffle import Shuffle
print(hashlib.sha256(Shuffle(100_003, 5, 2).indices(0, 100_003).astype("<i8").tobytes()).hexdigest())
"""


def excess(observed, expected: float, freedom: int) -> float:
    """How many standard deviations chi-square lies above what chance gives."""
    chi_square = float(((np.asarray(observed) - expected) ** 2 / expected).sum())
    return (chi_square - freedom) / math.sqrt(2 * freedom)


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(), st.integers(0, 100))
def test_every_sample_comes_exactly_once(length, seed, epoch):
    order = Shuffle(length, seed, epoch).indices(0, length)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(length))


@pytest.mark.parametrize("length", [65_536, 99_999, 1_000_003])
def test_every_sample_of_a_large_set_comes_exactly_once(length):
    seen = np.zeros(length, bool)
    seen[Shuffle(length, 0, 0).indices(0, length)] = True
    assert seen.all()


@settings(deadline=None)
@given(st.integers(10**6, 10**12), st.integers(0, 10**6), st.data())
def test_positions_of_a_huge_set_go_to_different_samples_within_it(length, seed, data):
    start = data.draw(st.integers(0, length - 20_000))
    order = Shuffle(length, seed, 0).indices(start, start + 20_000)
    assert 0 <= order.min() <= order.max() < length
    assert len(np.unique(order)) == 20_000


def test_the_longest_set_is_shuffled_without_overflow():
    order = Shuffle(LONGEST, 1, 0).indices(LONGEST - 1000, LONGEST)
    assert 0 <= order.min() <= order.max() < LONGEST
    assert len(np.unique(order)) == 1000


@settings(deadline=None)
@given(st.integers(1, 50_000), st.data())
def test_a_part_is_the_same_as_in_the_whole(length, data):
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    shuffle = Shuffle(length, 3, 1)
    assert np.array_equal(shuffle.indices(start, stop), shuffle.indices(0, length)[start:stop])
    if start < stop:
        assert shuffle.index(start) == shuffle.indices(start, stop)[0]


def test_the_order_is_the_same_in_another_process_and_forever():
    here = Shuffle(100_003, 5, 2).indices(0, 100_003).astype("<i8").tobytes()
    there = subprocess.run(
        [sys.executable, "-c", DIGEST],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert there.stdout.strip() == hashlib.sha256(here).hexdigest()
    assert Shuffle(10, 0, 0).indices(0, 10).tolist() == [2, 9, 7, 1, 5, 6, 3, 0, 8, 4]


def test_without_a_seed_samples_keep_their_order():
    assert Shuffle(10**12, None, 3).indices(10**11, 10**11 + 5).tolist() == list(range(10**11, 10**11 + 5))


def test_seeds_and_epochs_give_unrelated_orders():
    length = 10_000
    first = Shuffle(length, 0, 0).indices(0, length)
    for other in (Shuffle(length, 0, 1), Shuffle(length, 1, 0), Shuffle(length, -1, 0)):
        order = other.indices(0, length)
        assert (order == first).sum() < 10
        assert abs(np.corrcoef(order, first)[0, 1]) < 0.05


@pytest.mark.parametrize("length", [3, 4, 5])
def test_every_order_of_a_few_samples_is_equally_likely(length):
    orders = math.factorial(length)
    counts = Counter(tuple(Shuffle(length, 11, epoch).indices(0, length)) for epoch in range(20 * orders))
    assert excess([counts[order] for order in itertools.permutations(range(length))], 20, orders - 1) < 4


@pytest.mark.parametrize("length", [9, 16, 25, 100])
def test_every_sample_is_equally_likely_at_every_position(length):
    epochs = 2000
    counts = np.zeros((length, length))
    for epoch in range(epochs):
        counts[np.arange(length), Shuffle(length, 3, epoch).indices(0, length)] += 1
    assert excess(counts, epochs / length, (length - 1) ** 2) < 4


@pytest.mark.parametrize("length", [1000, 1_000_000, 10**9, 10**12])
def test_neighbours_and_stretches_have_no_structure(length):
    order = Shuffle(length, 0, 0).indices(0, min(length, 200_000))
    steps = np.diff(order) % length
    bins = 50
    assert excess(np.bincount(steps * bins // length, minlength=bins), len(steps) / bins, bins - 1) < 4
    stretch = order[: len(order) // 2]
    assert excess(np.bincount(stretch * bins // length, minlength=bins), len(stretch) / bins, bins - 1) < 4
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / math.sqrt(len(order))


def test_positions_and_lengths_that_cannot_be_are_named():
    with pytest.raises(IndexError, match=r"\[8, 11\).*10 samples"):
        Shuffle(10, 0, 0).indices(8, 11)
    with pytest.raises(IndexError):
        Shuffle(10, 0, 0).index(-1)
    with pytest.raises(IndexError):
        Shuffle(0, 0, 0).index(0)
    with pytest.raises(DataError, match="-1 samples"):
        Shuffle(-1, 0, 0)
