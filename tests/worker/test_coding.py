"""What travels encoded, and what the encoding has lost."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from manyhands.core.messages import Tensor
from manyhands.errors import ModelError
from manyhands.sharing.encode.cast import Cast
from manyhands.sharing.encode.chain import ErrorFeedback, chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.encode.stage import Stage
from manyhands.sharing.layout import Layout
from manyhands.worker.coding import Coding, Made

N = 1000
LAYOUT = Layout((Tensor("w", (N,), "float32"),))
VECTOR = np.random.default_rng(0).standard_normal(N).astype(np.float32)


def coding(*parts: object) -> Coding:
    made = Coding(chain(*(parts or (ErrorFeedback(), Quantize(4)))), LAYOUT)  # type: ignore[arg-type]
    made.join([(0, N)])
    return made


def contribution(made: Coding, what: Made, vector: np.ndarray, a: int, b: int, rank: int = 0) -> np.ndarray:
    """What a slice, elements [a, b) of a contribution, is encoded to."""
    return made.contribution(0, rank, what, vector[a:b], made.lost(what.base, a, b))


def combine(made: Coding, what: Made, vector: np.ndarray, out: np.ndarray) -> None:
    made.combine(0, what, 2, vector[:500], out, made.lost_of_means(what.base, 0, 500))


def contributed(made: Coding, base: int, vector: np.ndarray = VECTOR) -> np.ndarray:
    """What others decode of a contribution in two slices."""
    out = np.empty(N, np.float32)
    for rank, (a, b) in enumerate(((0, 500), (500, N))):
        made.decode(contribution(made, Made(1, base, 0b1), vector, a, b, rank), out[a:b], 2, combined=False)
    return out


def test_what_is_lost_of_a_contribution_that_counted_is_in_the_next_one() -> None:
    made = coding()
    first = contributed(made, 0)
    made.commit(Made(1, 0, 0b11), counted=True)
    second = contributed(made, 1)
    assert np.linalg.norm(first + second - 2 * VECTOR) < 0.7 * 2 * np.linalg.norm(first - VECTOR)
    assert not np.array_equal(first, second)


def test_what_was_lost_by_one_goes_with_the_next_of_another_that_takes_its_place() -> None:
    made, other = coding(), coding()
    contributed(made, 0)
    made.commit(Made(1, 0, 0b11), counted=True)
    other.owe([vector.copy() for vector in made.owed()])
    assert np.array_equal(contributed(other, 1), contributed(made, 1))
    assert coding(Quantize(4)).owed() == []
    with pytest.raises(ModelError, match="has lost of 3 elements does not fit 1000"):
        coding().owe([np.zeros(3, np.float32)])


@pytest.mark.parametrize("ending", ["aborted", "not counted"])
def test_a_round_that_did_not_count_leaves_the_residual_as_it_was(ending: str) -> None:
    made, untouched = coding(), coding()
    for one in (made, untouched):
        contributed(one, 0)
        one.commit(Made(1, 0, 0b11), counted=True)
    contributed(made, 1, 3 * VECTOR)
    if ending == "aborted":
        made.join([(0, N)])
    else:
        made.commit(Made(1, 1, 0b11), counted=False)
    again = contributed(made, 2)
    assert np.array_equal(again, contributed(untouched, 2))
    assert not np.array_equal(again, contributed(coding(), 2))


def test_a_slice_that_is_asked_for_again_has_the_same_bytes_and_loses_nothing_twice() -> None:
    made = coding()
    once, again = (contribution(made, Made(1, 0, 0b1), VECTOR, 0, N) for _ in range(2))
    assert once is again


def test_who_combined_a_slice_adopts_what_the_others_decode_of_it() -> None:
    made, other = coding(), coding()
    mine, theirs = np.empty(500, np.float32), np.empty(500, np.float32)
    combine(made, Made(1, 0, 0b11), VECTOR, mine)
    content = made.combined(0, Made(1, 0, 0b11))
    assert content is not None
    other.decode(content, theirs, 2, combined=True)
    assert np.array_equal(mine, theirs)
    assert not np.array_equal(mine, VECTOR[:500])
    assert made.combined(0, Made(1, 0, 0b01)) is None
    assert made.combined(0, Made(2, 0, 0b11)) is None


def test_what_is_lost_of_means_is_fed_back_within_a_view_and_forgotten_with_it() -> None:
    made = coding()
    first, second, third = (np.empty(500, np.float32) for _ in range(3))
    combine(made, Made(1, 0, 0b11), VECTOR, first)
    made.commit(Made(1, 0, 0b11), counted=True)
    combine(made, Made(1, 1, 0b11), VECTOR, second)
    made.join([(0, N)])
    combine(made, Made(2, 2, 0b11), VECTOR, third)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, third)


def test_a_worker_that_heals_has_lost_nothing() -> None:
    made = coding()
    first = contributed(made, 0)
    made.commit(Made(1, 0, 0b11), counted=True)
    made.forget()
    assert np.array_equal(contributed(made, 1), first)


def test_a_contribution_that_is_rolled_forward_over_a_change_of_view_has_lost_what_it_lost() -> None:
    made, plain = coding(), coding()
    for one in (made, plain):
        contributed(one, 0)
    made.join([(0, N)])  # the round was closed by others; this member takes its result up in the next view
    made.commit(Made(1, 0, 0b11), counted=True)
    plain.commit(Made(1, 0, 0b11), counted=True)
    assert np.array_equal(contributed(made, 1), contributed(plain, 1))


def test_what_was_encoded_for_an_older_view_is_encoded_again_for_other_slices() -> None:
    made = coding()
    contribution(made, Made(1, 0, 0b1), VECTOR, 0, 500)
    made.join([(0, N)])
    again = contribution(made, Made(2, 0, 0b1), VECTOR, 0, 400)
    assert len(again) == made.nbytes(400, 2, combined=False)


def test_a_value_that_cannot_be_encoded_is_found_before_anything_is_sent() -> None:
    made = coding(ErrorFeedback(), Cast("float16"))
    assert made.problem(VECTOR) == ""
    assert "cannot carry 1e+06: it must be below 65520" in made.problem(VECTOR * 0 + np.float32(1e6))


def test_a_worker_keeps_what_was_lost_of_the_slices_that_it_encodes_on() -> None:
    made, fresh = coding(), coding()
    first = contributed(made, 0)
    made.commit(Made(1, 0, 0b11), counted=True)
    made.join([(500, N)])
    second, expected = contributed(made, 1), contributed(fresh, 0)
    assert np.array_equal(second[:500], expected[:500])
    assert np.array_equal(first, expected)
    assert not np.array_equal(second[500:], expected[500:])


def gathered(made: Coding, base: int, value: float) -> float:
    """What others decode of a gathered slice, all of whose elements are this value."""
    out = np.empty(500, np.float32)
    content = made.gathered(
        0, 0, Made(1, base, 0b11), np.full(500, value, np.float32), made.lost(base, 0, 500)
    )
    made.decode(content, out, 2, combined=False)
    assert (out == out[0]).all()
    return float(out[0])


def test_a_slice_that_only_the_residual_makes_too_great_is_encoded_without_it() -> None:
    made = coding(ErrorFeedback(), Cast("float16"))
    assert gathered(made, 0, 40010.0) == 40000.0
    made.commit(Made(1, 0, 0b11), counted=True)
    assert gathered(made, 1, 65515.0) == 65504.0  # 65525 would be refused
    made.commit(Made(1, 1, 0b11), counted=True)
    assert gathered(made, 2, 40000.0 + 6.0) == 40032.0  # with the 11 that were lost of the last one


def test_a_slice_that_is_encoded_without_the_residual_leaves_it_to_the_round_that_starts_over() -> None:
    made = coding(ErrorFeedback(), Cast("float16"))
    gathered(made, 0, 40010.0)
    made.commit(Made(1, 0, 0b11), counted=True)
    gathered(made, 1, 65515.0)
    made.join([(0, N)])
    assert gathered(made, 1, 40010.0) == 40032.0  # with the 10 that were lost of the first one


@pytest.mark.parametrize("encoding", [Cast("float16"), Cast("bfloat16"), Quantize(8)], ids=str)
@pytest.mark.parametrize("bad", [np.inf, np.nan, 3.4e38], ids=str)
@pytest.mark.parametrize("feedback", [True, False], ids=["fed back", "not fed back"])
def test_a_mean_that_cannot_be_encoded_is_sent_as_the_nearest_values_that_can(
    encoding: Stage, bad: float, feedback: bool
) -> None:
    """It overflowed, or a member that has lost its place wrote into it: no round waits for it."""
    made = coding(*([ErrorFeedback()] if feedback else []), encoding)
    mean, out = np.full(500, bad, np.float32), np.empty(500, np.float32)
    for _ in range(2):
        made.gathered(0, 0, Made(1, 0, 0b11), mean, made.lost(0, 0, 500))
        combine(made, Made(1, 0, 0b11), mean, out)
    assert np.isfinite(out).all()
    assert (out == 0).all() if np.isnan(bad) else (out > 65000).all()


def test_what_an_encode_of_an_older_view_loses_late_is_nobodys_residual() -> None:
    made, fresh = coding(), coding()
    late = made.lost(0, 0, N)
    made.join([(0, N)])
    made.contribution(0, 0, Made(1, 0, 0b1), 5 * VECTOR, late)
    made.commit(Made(1, 0, 0b11), counted=True)
    assert np.array_equal(contributed(made, 1), contributed(fresh, 1))


def test_a_residual_takes_memory_only_where_something_was_encoded() -> None:
    """Also when views change, in what is done under the worker's lock."""

    def resident() -> int:
        with open("/proc/self/statm") as pages:
            return int(pages.read().split()[1]) * resource.getpagesize()

    elements = 1 << 23
    large = Coding(chain(ErrorFeedback(), Quantize(4)), Layout((Tensor("w", (elements,), "float32"),)))
    before = resident()
    large.join([(0, elements // 8)])
    assert resident() - before < elements
    lost = large.lost(0, 0, elements // 8)
    assert lost is not None
    for vector in lost:
        vector[:] = 1
    large.join([(0, elements // 8)])
    assert resident() - before < 4 * elements  # a quarter of the two vectors, were they written to all over


def test_what_is_lost_of_one_fragment_is_fed_back_into_that_one_alone() -> None:
    made = Coding(chain(ErrorFeedback(), Quantize(4)), LAYOUT, fragments=2)
    made.join([(0, N)])
    first, mean = contributed(made, 0), np.empty(500, np.float32)
    combine(made, Made(1, 0, 0b11), VECTOR, mean)
    made.commit(Made(1, 0, 0b11), counted=True)
    nothing = np.zeros(N, np.float32)
    assert not contributed(made, 1, nothing).any()
    combine(made, Made(1, 1, 0b11), nothing, mean)
    assert not mean.any()
    made.commit(Made(1, 1, 0b11), counted=True)
    assert not np.array_equal(contributed(made, 2), first)
