"""What travels encoded, and what the encoding has lost."""

from __future__ import annotations

import numpy as np
import pytest

from manyhands.core.messages import Tensor
from manyhands.errors import Unencodable
from manyhands.sharing.encode.cast import Cast
from manyhands.sharing.encode.chain import ErrorFeedback, chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.layout import Layout
from manyhands.worker.coding import Coding

N = 1000
LAYOUT = Layout((Tensor("w", (N,), "float32"),))
VECTOR = np.random.default_rng(0).standard_normal(N).astype(np.float32)


def coding(*parts: object) -> Coding:
    made = Coding(chain(*(parts or (ErrorFeedback(), Quantize(4)))), LAYOUT)  # type: ignore[arg-type]
    made.join(2)
    return made


def contributed(made: Coding, base: int, vector: np.ndarray = VECTOR) -> np.ndarray:
    """What others decode of a contribution in two slices."""
    out = np.empty(N, np.float32)
    for rank, (a, b) in enumerate(((0, 500), (500, N))):
        made.decode(made.contribution(0, rank, base, vector, a, b), out[a:b], combined=False)
    return out


def test_what_is_lost_of_a_contribution_that_counted_is_in_the_next_one() -> None:
    made = coding()
    first = contributed(made, 0)
    made.commit(0, counted=True)
    second = contributed(made, 1)
    assert np.linalg.norm(first + second - 2 * VECTOR) < 0.7 * 2 * np.linalg.norm(first - VECTOR)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("ending", ["aborted", "not counted"])
def test_a_round_that_did_not_count_leaves_the_residual_as_it_was(ending: str) -> None:
    made = coding()
    first = contributed(made, 0)
    if ending == "aborted":
        made.join(3)
    else:
        made.commit(0, counted=False)
    again = np.empty(N, np.float32)
    made.decode(made.contribution(0, 0, 1, VECTOR, 0, N), again, combined=False)
    assert np.array_equal(first[:500], again[:500]) or ending == "aborted"
    fresh = coding()
    expected = np.empty(N, np.float32)
    fresh.decode(fresh.contribution(0, 0, 1, VECTOR, 0, N), expected, combined=False)
    assert np.array_equal(again, expected)


def test_a_slice_that_is_asked_for_again_has_the_same_bytes_and_loses_nothing_twice() -> None:
    made = coding()
    assert made.contribution(0, 0, 0, VECTOR, 0, N) is made.contribution(0, 0, 0, VECTOR, 0, N)


def test_who_combined_a_slice_adopts_what_the_others_decode_of_it() -> None:
    made, other = coding(), coding()
    mine, theirs = np.empty(500, np.float32), np.empty(500, np.float32)
    made.combine(0, 0, 0b11, VECTOR[:500], mine, 0, 500)
    content = made.combined(0, 0, 0b11)
    assert content is not None
    other.decode(content, theirs, combined=True)
    assert np.array_equal(mine, theirs)
    assert not np.array_equal(mine, VECTOR[:500])
    assert made.combined(0, 0, 0b01) is None
    assert made.combined(0, 1, 0b11) is None


def test_what_is_lost_of_means_is_fed_back_within_a_view_and_forgotten_with_it() -> None:
    made = coding()
    first, second, third = (np.empty(500, np.float32) for _ in range(3))
    made.combine(0, 0, 0b11, VECTOR[:500], first, 0, 500)
    made.commit(0, counted=True)
    made.combine(0, 1, 0b11, VECTOR[:500], second, 0, 500)
    made.join(2)
    made.combine(0, 2, 0b11, VECTOR[:500], third, 0, 500)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, third)


def test_a_worker_that_heals_has_lost_nothing() -> None:
    made = coding()
    first = contributed(made, 0)
    made.commit(0, counted=True)
    made.forget()
    assert np.array_equal(contributed(made, 1), first)


def test_a_value_that_cannot_be_encoded_is_named() -> None:
    with pytest.raises(Unencodable, match="1000000"):
        contributed(coding(Cast("float16")), 0, VECTOR * 0 + np.float32(1e6))
