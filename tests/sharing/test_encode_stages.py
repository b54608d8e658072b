"""What each stage of an encoding promises of its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from round_trips import F4, decoded, encoded, through

from manyhands.errors import Unencodable, WireError
from manyhands.sharing.encode import packing, positions
from manyhands.sharing.encode.cast import Cast
from manyhands.sharing.encode.chain import Encoding, chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.encode.topk import TopK


def vector(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(F4)


def error(e: Encoding, x: np.ndarray) -> float:
    return float(np.linalg.norm(through(e, x) - x) / np.linalg.norm(x))


# --- Cast ----------------------------------------------------------------------------------------


@given(x=arrays(F4, 50, elements=st.floats(-6e4, 6e4, width=32)))
@settings(deadline=None)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cast_has_the_bits_that_torch_gives(dtype: str, x: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    expected = torch.from_numpy(x).to(getattr(torch, dtype))
    assert encoded(chain(Cast(dtype)), x).tobytes() == expected.view(torch.int16).numpy().tobytes()
    np.testing.assert_array_equal(through(chain(Cast(dtype)), x), expected.float().numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_was_cast_is_cast_without_loss(dtype: str) -> None:
    once = through(chain(Cast(dtype)), vector(1000))
    np.testing.assert_array_equal(through(chain(Cast(dtype)), once), once)


def test_a_value_beyond_float16_is_refused_by_value_with_the_remedy() -> None:
    assert through(chain(Cast("float16")), np.array([65519.0], F4)) == 65504
    with pytest.raises(Unencodable, match=r'holds -65520, beyond ±65504; use Cast\("bfloat16"\)'):
        encoded(chain(Cast("float16")), np.array([1.0, -65520.0], F4))


def test_a_value_that_bfloat16_rounds_to_infinity_is_refused() -> None:
    with pytest.raises(Unencodable, match=r"beyond ±3\.39e38"):
        encoded(chain(Cast("bfloat16")), np.array([np.finfo(F4).max], F4))
    with pytest.raises(Unencodable, match=r"holds 1e\+300, beyond ±3\.39e38"):
        encoded(chain(Cast("bfloat16")), np.array([1e300]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FFF])
def test_a_cast_value_that_is_not_finite_is_malformed(dtype: str, bits: int) -> None:
    data = np.array([0, bits], np.uint16).view(np.uint8)
    with pytest.raises(WireError, match=f"as {dtype}"):
        decoded(chain(Cast(dtype)), data, 2, F4)


# --- Quantize --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "levels"), [(8, 127), (4, 7)])
def test_whole_steps_come_back_to_the_bit(bits: int, levels: int) -> None:
    x = (np.arange(-levels, levels + 1) * 0.25).astype(F4)
    np.testing.assert_array_equal(through(chain(Quantize(bits, block=300)), x), x)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_value_between_two_steps_goes_to_the_nearer_and_of_two_to_the_even(bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    x = np.array([most, 0.49, 0.5, 0.51, 1.5, 2.5, -0.5, -0.51, -1.5], F4)
    np.testing.assert_array_equal(through(chain(Quantize(bits)), x), [most, 0, 0, 1, 2, 2, 0, -1, -2])


@pytest.mark.parametrize(("bits", "most"), [(8, 0.0067), (4, 0.119), (2, 0.345)])
def test_the_error_on_gaussian_values_is_as_stated(bits: int, most: float) -> None:
    assert 0.9 * most < error(chain(Quantize(bits)), vector(200_000)) < most


def test_two_bits_lose_little_of_what_top_k_keeps() -> None:
    x = vector(1 << 18)
    kept = x[np.flatnonzero(through(chain(TopK(1 / 64)), x))]
    assert error(chain(Quantize(2)), kept) < 0.07


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_an_outlier_spoils_its_own_block_only(bits: int, scale: float) -> None:
    x = vector(1024)
    alone = through(chain(Quantize(bits)), x)
    x[200] = scale
    beside = through(chain(Quantize(bits)), x)
    np.testing.assert_array_equal(beside[:128], alone[:128])
    np.testing.assert_array_equal(beside[256:], alone[256:])


def test_two_bits_keep_each_sign_and_the_sum_of_the_magnitudes() -> None:
    x = vector(1280)
    y = through(chain(Quantize(2)), x)
    np.testing.assert_array_equal(np.signbit(x), np.signbit(y))
    for a in range(0, 1280, 128):
        assert np.abs(y[a : a + 128]).sum() == pytest.approx(np.abs(x[a : a + 128]).sum(), rel=1e-5)


@pytest.mark.parametrize("low", [1.0, 0.3, 1e-6, 1e-30])
def test_two_magnitudes_are_enough_for_a_block_of_two(low: float) -> None:
    x = np.where(vector(128) > 0.5, 1, low).astype(F4) * np.sign(vector(128, 1))
    np.testing.assert_allclose(through(chain(Quantize(2)), x), x, rtol=1e-5)


@pytest.mark.parametrize(
    ("bits", "scale"),
    [(b, s) for b in (8, 4) for s in (np.nan, np.inf, -1.0, 0.0, 1e-40, 3e38)]
    + [(2, s) for s in (np.nan, np.inf, -1.0)],
)
def test_a_scale_that_is_none_is_malformed(bits: int, scale: float) -> None:
    data = encoded(chain(Quantize(bits)), vector(100))
    data[:4] = np.array([scale], F4).view(np.uint8)
    with pytest.raises(WireError, match=r"scale: .*expected"):
        decoded(chain(Quantize(bits)), data, 100, F4)


@pytest.mark.parametrize(("bits", "byte", "code"), [(8, 0xFF, 255), (4, 0x0F, 15), (4, 0xF0, 15)])
def test_a_code_beyond_the_levels_is_malformed(bits: int, byte: int, code: int) -> None:
    data = encoded(chain(Quantize(bits)), vector(100))
    data[-1] = byte
    with pytest.raises(WireError, match=f"code: {code}, expected {code - 1} at most"):
        decoded(chain(Quantize(bits)), data, 100, F4)


@given(bits=st.sampled_from([2, 4, 8]), n=st.integers(1, 300), seed=st.integers(0, 99))
def test_packed_codes_come_back(bits: int, n: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, n, np.uint8)
    out = np.full(packing.nbytes(n, bits), 0xFF, np.uint8)
    packing.pack(codes, bits, out)
    assert len(out) == -(-n * bits // 8)
    np.testing.assert_array_equal(packing.unpack(out, bits, n), codes)


# --- TopK --------------------------------------------------------------------------------------------


@given(
    x=arrays(F4, st.integers(1, 700), elements=st.integers(-3, 3).map(float)),
    density=st.floats(0.001, 1),
    chunk=st.integers(1, 800),
)
@settings(deadline=None)
def test_the_largest_of_each_chunk_are_kept_and_of_equal_ones_the_first(
    x: np.ndarray, density: float, chunk: int
) -> None:
    expected = np.zeros_like(x)
    for a in range(0, len(x), chunk):
        part = x[a : a + chunk]
        kept = np.argsort(-np.abs(part), kind="stable")[: int(np.ceil(density * len(part)))]
        expected[a + kept] = part[kept]
    np.testing.assert_array_equal(through(chain(TopK(density, chunk)), x), expected)


def test_a_place_among_64_takes_a_byte() -> None:
    n = 1 << 16
    assert chain(TopK(1 / 64)).nbytes(n, F4) == pytest.approx(n / 64 * (4 + 1), rel=0.001)
    assert chain(TopK(1 / 64), Quantize(2)).nbytes(n, F4) == pytest.approx(
        n / 64 * (2 + 8 + 0.5) / 8, rel=0.001
    )


@given(data=st.data(), n=st.integers(1, 3000))
@settings(deadline=None)
def test_places_come_back_in_no_more_bytes_than_a_bit_for_each(data: st.DataObject, n: int) -> None:
    k = data.draw(st.integers(1, n))
    places = np.sort(np.random.default_rng(data.draw(st.integers(0, 99))).permutation(n)[:k])
    if data.draw(st.booleans()):
        places = np.arange(n - k, n)
    out = np.full(positions.nbytes(k, n), 0xA5, np.uint8)
    positions.write(places, n, out)
    assert len(out) <= n // 8 + 2
    np.testing.assert_array_equal(positions.read(out, k, n), places)


def written(places: list[int], n: int) -> np.ndarray:
    out = np.empty(positions.nbytes(len(places), n), np.uint8)
    positions.write(np.array(places), n, out)
    return out


def test_too_many_or_too_few_places_are_malformed() -> None:
    for places, n in (([3, 40, 41], 1000), ([1, 2, 3], 7)):
        data = written(places, n)
        for end in (0xFF, 0x00):
            data[-1] = end
            with pytest.raises(WireError, match=f"indices: [0-9]+ of them, expected 3 of {n} values"):
                positions.read(data, 3, n)


def test_a_place_beyond_the_last_is_malformed() -> None:
    with pytest.raises(WireError, match="index: 1007, expected one below 1000"):
        positions.read(written([3, 40, 1007], 1008), 3, 1000)
    with pytest.raises(WireError, match="index: 7, expected one below 7"):
        positions.read(written([1, 2, 7], 8), 3, 7)


@pytest.mark.parametrize("places", [[40, 3, 700], [3, 3, 700]])
def test_places_that_do_not_increase_are_malformed(places: list[int]) -> None:
    with pytest.raises(WireError, match="not strictly increasing"):
        positions.read(written(places, 1000), 3, 1000)
