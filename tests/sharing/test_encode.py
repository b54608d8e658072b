"""What holds for every encoding of a slice, whatever it is made of."""

import hashlib
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from round_trips import decoded, encoded, through, vector

from manyhands.errors import ProtocolError, StrategyError, Unencodable, WireError
from manyhands.sharing.encode.cast import Cast
from manyhands.sharing.encode.chain import Encoding, ErrorFeedback, chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.encode.topk import TopK

PIECE = 256
ENCODINGS = [
    chain(),
    chain(Cast("float16")),
    chain(Cast("bfloat16")),
    chain(Quantize(8)),
    chain(Quantize(4)),
    chain(Quantize(4, block=7)),
    chain(Quantize(2, block=32)),
    chain(TopK(1 / 64, chunk=64)),
    chain(TopK(0.3, chunk=100)),
    chain(TopK(1.0)),
    chain(TopK(1 / 8, chunk=64), Cast("bfloat16")),
    chain(TopK(1 / 8, chunk=64), Quantize(8, block=5)),
    chain(TopK(1 / 16, chunk=64), Quantize(2, block=8)),
    chain(TopK(1 / 4), TopK(1 / 4, chunk=16)),
    chain(ErrorFeedback(), Quantize(4)),
    chain(ErrorFeedback(0.95), TopK(1 / 16, chunk=64), Quantize(2)),
]
STATELESS = [e for e in ENCODINGS if not e.feedback]
DTYPES = [np.dtype("float32"), np.dtype("float64")]
LENGTHS = [0, 1, 2, 7, 63, 64, 65, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 77]

every_encoding = pytest.mark.parametrize("e", ENCODINGS, ids=repr)
every_stateless = pytest.mark.parametrize("e", STATELESS, ids=repr)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True, scope="module")
def _small_pieces() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manyhands.sharing.encode.chain.PIECE", PIECE)
        yield


def range_of(e: Encoding, dtype: np.dtype) -> float:
    if Cast("float16") in e.stages:
        return 65504.0
    return 3.38e38 if Cast("bfloat16") in e.stages else float(np.finfo(dtype).max)


@st.composite
def slices(draw: st.DrawFn, e: Encoding, dtype: np.dtype) -> np.ndarray:
    """Numbers of any magnitude, subnormal ones too; of about one magnitude; and mostly zeros."""
    n = draw(st.integers(0, 2 * PIECE + 100))
    most = float(
        dtype.type(draw(st.sampled_from([range_of(e, dtype), 1.0, 1e-6, float(np.finfo(dtype).tiny)])))
    )
    numbers = st.floats(-most, most, width=8 * dtype.itemsize)
    x = draw(arrays(dtype, n, elements=numbers, fill=draw(st.sampled_from([st.just(0.0), numbers]))))
    if draw(st.booleans()):
        x += vector(n, draw(st.integers(0, 99)), dtype) * dtype.type(min(most / 1e4, 1.0))
        np.clip(x, -most, most, out=x)
    return x


def bound(stages: tuple, x: np.ndarray) -> np.ndarray:
    """How far each element of a piece may be off, as the stages' docstrings say."""
    size = np.abs(x.astype(np.float64))
    if not stages:
        return np.zeros(len(x))
    stage, *rest = stages
    if isinstance(stage, Cast):
        relative, absolute = (2**-11, 2**-25) if stage.dtype == "float16" else (2**-8, 2.0**-134)
        return np.maximum(relative * size, absolute) * (1 + 2**-16)
    if isinstance(stage, Quantize):
        largest = np.concatenate(
            [[size[a : a + stage.block].max()] * stage.block for a in range(0, len(x), stage.block)]
        )
        largest = largest[: len(x)]
        if stage.bits == 2:
            return largest
        return 0.5001 * np.maximum(largest / {8: 127, 4: 7}[stage.bits], np.finfo(x.dtype).tiny)
    kept = largest_places(stage, x)
    allowed = size.copy()
    allowed[kept] = bound(tuple(rest), x[kept])
    return allowed


def largest_places(stage: TopK, x: np.ndarray) -> np.ndarray:
    """By sorting: the k of largest magnitude of each chunk, of equal ones the first."""
    places = []
    for a in range(0, len(x), stage.chunk):
        part = np.abs(x[a : a + stage.chunk])
        k = min(len(part), stage.contributions * int(np.ceil(stage.density * len(part))))
        places += sorted(a + np.argsort(-part, kind="stable")[:k])
    return np.array(places, int)


@every_stateless
@every_dtype
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_element_is_further_off_than_the_bound(e: Encoding, dtype: np.dtype, data: st.DataObject) -> None:
    x = data.draw(slices(e, dtype))
    y = through(e, x)
    assert np.isfinite(y).all()
    for a in range(0, len(x), PIECE):
        piece = x[a : a + PIECE]
        off = np.abs(y[a : a + PIECE].astype(np.float64) - piece)
        assert (off <= bound(e.stages, piece)).all()


@every_encoding
@every_dtype
@pytest.mark.parametrize("n", LENGTHS)
def test_the_size_depends_on_nothing_but_length_and_dtype(e: Encoding, n: int, dtype: np.dtype) -> None:
    for x in (np.zeros(n, dtype), vector(n, 0, dtype), np.full(n, -1e4, dtype)):
        assert np.isfinite(through(e, x)).all()


@every_encoding
@every_dtype
def test_zeros_stay_zeros(e: Encoding, dtype: np.dtype) -> None:
    assert not through(e, np.zeros(1000, dtype)).any()


@every_stateless
@every_dtype
def test_the_greatest_numbers_come_back_finite(e: Encoding, dtype: np.dtype) -> None:
    x = vector(1000, 1, dtype)
    x *= dtype.type(0.9 * range_of(e, dtype) / np.abs(x).max())
    x[500] = range_of(e, dtype)
    assert np.isfinite(through(e, x)).all()


@every_dtype
@every_encoding
def test_whatever_has_no_problem_is_encoded_and_so_is_what_is_nearest_to_anything(
    e: Encoding, dtype: np.dtype
) -> None:
    most = np.nextafter(dtype.type(e.limit), dtype.type(0))
    good = np.array([most, -most, 0.5, 0], dtype)
    assert e.problem(good) == ""
    assert np.isfinite(through(e, good)).all()
    bad = np.array([np.inf, -np.inf, 0.5, np.nan], dtype)
    np.testing.assert_array_equal(e.nearest(bad), good)
    if np.isfinite(e.limit):
        assert f"must be below {e.limit:g}" in e.problem(-np.array([1, 1.001 * e.limit], dtype))


@every_encoding
def test_what_is_encoded_is_only_read(e: Encoding) -> None:
    x = vector(1000)
    x.flags.writeable = False
    data = encoded(e, x)
    data.flags.writeable = False
    decoded(e, data, 1000, x.dtype)


@every_stateless
def test_a_slice_anywhere_in_memory_is_encoded_the_same(e: Encoding) -> None:
    x = vector(3000)
    expected = encoded(e, x[17:1017].copy())
    assert encoded(e, x[17:1017]).tobytes() == expected.tobytes()
    shifted = np.zeros(len(expected) + 1, np.uint8)
    e.encode(x[17:1017], shifted[1:])
    assert shifted[1:].tobytes() == expected.tobytes()
    np.testing.assert_array_equal(decoded(e, shifted[1:], 1000, x.dtype), decoded(e, expected, 1000, x.dtype))


@every_stateless
def test_each_piece_is_encoded_for_itself(e: Encoding) -> None:
    x = vector(2 * PIECE + 50)
    parts = [encoded(e, part).tobytes() for part in (x[:PIECE], x[PIECE : 2 * PIECE], x[2 * PIECE :])]
    assert encoded(e, x).tobytes() == b"".join(parts)


DIGEST = """
import hashlib
import numpy as np
from manyhands.sharing.encode.cast import Cast
from manyhands.sharing.encode.chain import ErrorFeedback, chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.encode.topk import TopK

digest = hashlib.sha256()
for parts in [
    [Cast("float16")], [Cast("bfloat16")], [Quantize(8)], [Quantize(4)], [Quantize(2)], [TopK(1 / 64)],
    [ErrorFeedback(0.95), TopK(1 / 64), Quantize(2)],
]:
    e = chain(*parts)
    for dtype in (np.dtype("float32"), np.dtype("float64")):
        x = np.random.default_rng(5).standard_t(3, 300_001).astype(dtype)
        out, y = np.empty(e.nbytes(len(x), dtype), np.uint8), np.empty_like(x)
        residual = (x[::-1].copy(), np.empty_like(x)) if e.feedback else None
        e.encode(x, out, residual)
        e.decode(out, y)
        for part in (repr(e).encode(), out, y, *(residual or ())):
            digest.update(part)
print(digest.hexdigest())
"""


def test_every_process_encodes_and_decodes_to_the_same_bits() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == len(hashlib.sha256().hexdigest())


@every_encoding
def test_nothing_of_the_slices_size_is_allocated(e: Encoding) -> None:
    x = vector(100 * PIECE)
    out, y, residual = np.empty(e.nbytes(len(x), x.dtype), np.uint8), np.empty_like(x), None
    if e.feedback:
        residual = (np.zeros_like(x), np.empty_like(x))
    tracemalloc.start()
    try:
        e.encode(x, out, residual)
        e.decode(out, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * PIECE * x.itemsize


# --- refusals ----------------------------------------------------------------------------------------


@every_encoding
@every_dtype
@pytest.mark.parametrize(
    ("value", "name"), [(np.nan, "NaN"), (np.inf, "an infinity"), (-np.inf, "an infinity")]
)
@pytest.mark.parametrize("place", [0, 999])
def test_what_is_not_finite_is_refused(
    e: Encoding, dtype: np.dtype, value: float, name: str, place: int
) -> None:
    x = vector(1000, 0, dtype)
    x[place] = value
    with pytest.raises(Unencodable, match=f"cannot carry {name}$"):
        encoded(e, x)


@every_encoding
@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused(e: Encoding, change: int) -> None:
    data = np.zeros(e.nbytes(1000, DTYPES[0]) + change, np.uint8)
    with pytest.raises(WireError, match=f"has {len(data)} bytes, expected {len(data) - change} for chain"):
        decoded(e, data, 1000, DTYPES[0])
    with pytest.raises(ProtocolError, match=f"takes {len(data) - change} bytes, not {len(data)}"):
        e.encode(vector(1000), data, (vector(1000), vector(1000)) if e.feedback else None)


@every_encoding
@every_dtype
@given(seed=st.integers(0, 2**32), n=st.integers(0, 2 * PIECE), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_any_bytes_decode_to_finite_numbers_or_are_refused(
    e: Encoding, dtype: np.dtype, seed: int, n: int, share: float
) -> None:
    data = encoded(e, vector(n, 0, dtype))
    rng = np.random.default_rng(seed)
    damaged = rng.random(len(data)) < share * rng.random()
    data[damaged] = rng.integers(0, 256, int(damaged.sum()), np.uint8)
    out = np.zeros(n, dtype)
    try:
        e.decode(data, out)
    except WireError:
        return
    assert np.isfinite(out).all()


@pytest.mark.parametrize("x", [np.zeros(9, np.float16), np.zeros(9, np.int64), np.zeros((3, 3), np.float32)])
def test_only_flat_float32_and_float64_are_encoded(x: np.ndarray) -> None:
    data = np.zeros(chain(Quantize(8)).nbytes(len(x), x.dtype), np.uint8)
    with pytest.raises(ProtocolError, match="flat float32 or float64"):
        chain(Quantize(8)).encode(x, data)
    with pytest.raises(ProtocolError, match="flat float32 or float64"):
        chain(Quantize(8)).decode(data, x)


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ([Quantize(8), TopK(0.1)], r"Quantize\(8\) leaves nothing to TopK\(0.1\); .*put Quantize\(8\) last"),
        ([Cast("float16"), Quantize(8)], r"leaves nothing to Quantize\(8\); take one of them\.$"),
        ([Quantize(4), ErrorFeedback()], r"ErrorFeedback\(1.0\) must come first, and once"),
        ([Quantize], r"Quantize is a class; give an object"),
        ([chain(Quantize(4))], r"chain\(Quantize\(4\)\) is a chain already"),
        ([[Quantize(4)]], r"a list; give its parts themselves"),
        ([TopK(0.1), ErrorFeedback()], r"ErrorFeedback\(1.0\) must come first, and once"),
        ([ErrorFeedback(), ErrorFeedback(0.9)], r"ErrorFeedback\(0.9\) must come first, and once"),
        ([8], r"chain: 8 is not known; use "),
    ],
)
def test_a_chain_that_makes_no_sense_says_what_to_do(parts: list, complaint: str) -> None:
    with pytest.raises(StrategyError, match=complaint):
        chain(*parts)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ErrorFeedback(0),
        lambda: ErrorFeedback(1.5),
        lambda: ErrorFeedback(float("nan")),
        lambda: ErrorFeedback(True),
        lambda: Cast("int8"),
        lambda: Quantize(3),
        lambda: Quantize(4.0),
        lambda: Quantize(True),
        lambda: Quantize(4, block=0),
        lambda: Quantize(4, block=1.5),
        lambda: TopK(0),
        lambda: TopK("1/64"),
        lambda: TopK(float("nan")),
        lambda: TopK(0.1, chunk=0),
        lambda: TopK(0.1, chunk=1 << 20),
        lambda: TopK(0.1, contributions=0),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_a_remedy(make: object) -> None:
    with pytest.raises(StrategyError, match=r"(must be|is not known; use)"):
        make()


def test_all_that_makes_no_sense_is_said_at_once() -> None:
    with pytest.raises(StrategyError, match=r"density=2 .*\n.*chunk=0 .*\n.*contributions=-1 "):
        TopK(2, 0, -1)
    with pytest.raises(StrategyError, match=r"bits=5 .*\n.*block='a' "):
        Quantize(5, "a")


@every_encoding
def test_an_encoding_is_a_value_that_its_repr_makes_again(e: Encoding) -> None:
    again = eval(repr(e))
    assert again == e
    assert repr(again) == repr(e)
    assert hash(again) == hash(e)
