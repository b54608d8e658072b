import numpy as np
import pytest

from manyhands.errors import ProtocolError
from manyhands.sharing import combine
from manyhands.sharing.combine import blemish, finite, mean


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combine, "BLOCK", 64)


def vectors(count: int, n: int = 1000, dtype: str = "float32") -> list[np.ndarray]:
    return [np.random.default_rng(seed).standard_normal(n).astype(dtype) for seed in range(count)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "weights", [[1.0], [3.0, 3.0], [1, 2], [5, 5, 5], [8, 1, 64, 3], [0.0, 7, 7], [2, 0, 1]]
)
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
def test_the_mean_is_the_weighted_mean_to_rounding(weights: list[float], n: int, dtype: str) -> None:
    inputs = vectors(len(weights), n, dtype)
    out = np.full(n, np.nan, dtype)
    mean(out, inputs, weights)
    exact = np.average(np.array(inputs, "float64"), axis=0, weights=weights)
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(out, exact, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("weights", [[1, 1, 1], [3, 1, 2]])
def test_the_same_contributions_in_the_same_order_give_the_same_bits(weights: list[float]) -> None:
    inputs = vectors(3)
    first, second = np.empty(1000, "float32"), np.zeros(1000, "float32")
    mean(first, inputs, weights)
    mean(second, [x.copy() for x in inputs], weights)
    assert first.tobytes() == second.tobytes()
    cut = np.empty(1000, "float32")
    for a, b in [(0, 100), (100, 101), (101, 1000)]:
        mean(cut[a:b], [x[a:b] for x in inputs], weights)
    assert first.tobytes() == cut.tobytes()


def test_a_weight_that_all_share_does_not_change_a_bit() -> None:
    inputs = vectors(3)
    first, second = np.empty(1000, "float32"), np.empty(1000, "float32")
    mean(first, inputs, [1, 1, 1])
    mean(second, inputs, [96, 96, 96])
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("own", [0, 1, 2])
@pytest.mark.parametrize("weights", [[1, 1, 1], [3, 1, 2], [1, 0, 0], [0, 2, 1], [0, 0, 0]])
def test_the_result_may_replace_any_one_of_the_inputs(own: int, weights: list[float]) -> None:
    inputs = vectors(3)
    expected = np.empty(1000, "float32")
    mean(expected, inputs, weights)
    mean(inputs[own], inputs, weights)
    assert inputs[own].tobytes() == expected.tobytes()


def test_an_input_of_weight_zero_is_never_read() -> None:
    inputs = vectors(3)
    inputs[1][...] = np.nan
    out = np.empty(1000, "float32")
    mean(out, inputs, [1, 0, 3])
    assert finite(out)


def test_without_any_weight_the_mean_is_zero() -> None:
    out = np.ones(1000, "float32")
    mean(out, vectors(2), [0, 0])
    assert not out.any()
    mean(out, [], [])
    assert not out.any()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_refused(weight: float) -> None:
    with pytest.raises(ProtocolError, match="must be finite and not negative"):
        mean(np.empty(1000, "float32"), vectors(2), [1, weight])


def test_contributions_without_a_weight_are_refused() -> None:
    with pytest.raises(ProtocolError, match="2 contributions came with 1 weights"):
        mean(np.empty(1000, "float32"), vectors(2), [1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 63, 64, 999])
def test_one_element_that_is_not_finite_is_found_anywhere(bad: float, at: int) -> None:
    x = vectors(1)[0]
    assert finite(x)
    x[at] = bad
    assert not finite(x)
    assert blemish(x) == ("NaN" if np.isnan(bad) else "an infinity")


def test_large_and_no_elements_are_finite() -> None:
    assert finite(np.full(1000, np.finfo("float32").max, "float32"))
    assert finite(np.empty(0, "float32"))
