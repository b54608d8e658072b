"""What an encoding loses is fed back, and what contributions are combined to keeps what they kept."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from round_trips import decoded, through, vector

from manyhands.errors import ProtocolError, Unencodable
from manyhands.sharing.encode.cast import Cast
from manyhands.sharing.encode.chain import Encoding, ErrorFeedback, chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.encode.topk import TopK

every_dtype = pytest.mark.parametrize("dtype", [np.dtype("float32"), np.dtype("float64")], ids=str)


@pytest.fixture(autouse=True, scope="module")
def _small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manyhands.sharing.encode.chain.PIECE", 256)
        yield


def rounds(e: Encoding, xs: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """What was sent of each, and the last residual."""
    residual, sent = np.zeros_like(xs[0]), []
    for x in xs:
        new = np.full_like(x, np.nan)
        out = np.empty(e.nbytes(len(x), x.dtype), np.uint8)
        e.encode(x, out, (residual, new))
        sent.append(decoded(e, out, len(x), x.dtype))
        residual = new
    return sent, residual


FED_BACK = [
    chain(ErrorFeedback(), Cast("bfloat16")),
    chain(ErrorFeedback(), Quantize(4)),
    chain(ErrorFeedback(), Quantize(2)),
    chain(ErrorFeedback(), TopK(1 / 8, chunk=64)),
    chain(ErrorFeedback(), TopK(1 / 8, chunk=64), Quantize(2)),
]


@every_dtype
@pytest.mark.parametrize("e", FED_BACK, ids=repr)
def test_all_that_was_learned_is_sent_or_in_the_residual(e: Encoding, dtype: np.dtype) -> None:
    xs = [vector(700, seed, dtype) for seed in range(20)]
    sent, residual = rounds(e, xs)
    np.testing.assert_allclose(sum(sent) + residual, sum(xs), rtol=0, atol=1e3 * np.finfo(dtype).eps)


def test_what_top_k_leaves_is_the_residual_to_the_bit() -> None:
    x, old = vector(1000, 1), vector(1000, 2)
    e = chain(ErrorFeedback(0.95), TopK(1 / 8))
    new, out = np.empty_like(x), np.empty(e.nbytes(1000, x.dtype), np.uint8)
    e.encode(x, out, (old, new))
    sent = decoded(e, out, 1000, x.dtype)
    fed = old * np.float32(0.95) + x
    np.testing.assert_array_equal(sent + new, fed)
    assert not (sent * new).any()


@pytest.mark.parametrize("e", FED_BACK, ids=repr)
def test_a_steady_update_arrives_whole_in_the_long_run(e: Encoding) -> None:
    x = vector(512)
    sent, _ = rounds(e, [x] * 400)
    arrived = sum(sent) / 400
    assert np.linalg.norm(arrived - x) < 0.05 * np.linalg.norm(x)


def test_a_round_that_aborts_is_encoded_again_to_the_same_bytes() -> None:
    e = chain(ErrorFeedback(0.9), TopK(1 / 8), Quantize(4))
    x, old = vector(1000, 1), vector(1000, 2)
    old.flags.writeable = x.flags.writeable = False
    first, second = np.zeros((2, e.nbytes(1000, x.dtype)), np.uint8)
    for out in (first, second):
        e.encode(x, out, (old, np.empty_like(x)))
    assert first.tobytes() == second.tobytes()


def test_a_residual_that_grows_beyond_all_bounds_is_refused() -> None:
    x = np.full(10, np.finfo(np.float32).max, np.float32)
    e = chain(ErrorFeedback(), Quantize(8))
    with pytest.raises(Unencodable, match="an infinity"):
        e.encode(x, np.empty(e.nbytes(10, x.dtype), np.uint8), (x, np.empty_like(x)))


def test_a_decay_below_one_forgets() -> None:
    e = chain(ErrorFeedback(0.5), TopK(1 / 64, chunk=64))
    x = np.zeros(64, np.float32)
    x[0], x[1] = 8, 4
    _, residual = rounds(e, [x, x * 0, x * 0])
    assert not residual.any()
    sent, _ = rounds(e, [x, x, x])
    assert [s[1] for s in sent] == [0, 0, 0]


def test_residuals_come_with_feedback_and_only_with_it() -> None:
    x, fed, plain = vector(10), chain(ErrorFeedback(), Quantize(8)), chain(Quantize(8))
    out = np.empty(plain.nbytes(10, x.dtype), np.uint8)
    with pytest.raises(ProtocolError, match="without a residual"):
        fed.encode(x, out)
    with pytest.raises(ProtocolError, match="with a residual"):
        plain.encode(x, out, (x, x.copy()))
    with pytest.raises(ProtocolError, match="of that length and dtype"):
        fed.encode(x, out, (x, np.empty(11, x.dtype)))


# --- what contributions are combined to ------------------------------------------------------------------


@given(
    n=st.integers(0, 600),
    members=st.integers(1, 9),
    density=st.floats(0.001, 1),
    chunk=st.integers(1, 300),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_the_combination_keeps_all_that_any_contribution_kept(
    n: int, members: int, density: float, chunk: int, seed: int
) -> None:
    e = chain(ErrorFeedback(), TopK(density, chunk))
    total = sum(through(e, vector(n, seed + rank)) for rank in range(members))
    np.testing.assert_array_equal(through(e.combined(members), total), total)


def test_the_combination_is_encoded_like_the_contributions_with_a_feedback_of_its_own() -> None:
    e = chain(ErrorFeedback(0.95), TopK(1 / 64), Quantize(2))
    assert repr(e.combined(4)) == "chain(ErrorFeedback(0.95), TopK(0.015625, contributions=4), Quantize(2))"
    assert chain(Quantize(4, block=64)).combined(9) == chain(Quantize(4, block=64))
    assert chain(Cast("float16")).combined(9) == chain(Cast("float16"))
