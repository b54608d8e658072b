import numpy as np
import pytest

from manyhands.sharing import outer
from manyhands.sharing.outer import SGD, Nesterov

SIZES = [0, 1, 7, 64, 1000]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer, "BLOCK", 64)


def vector(n: int, seed: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(dtype)


@pytest.mark.parametrize("n", SIZES)
def test_sgd_of_rate_one_is_exactly_base_minus_update(n: int) -> None:
    base, update = vector(n, 1), vector(n, 2)
    expected = base - update
    SGD(1.0).apply(base, update, SGD(1.0).state_like(n, base.dtype))
    assert base.tobytes() == expected.tobytes()


@pytest.mark.parametrize("n", SIZES)
def test_sgd_scales_the_update(n: int) -> None:
    base, update = vector(n, 1), vector(n, 2)
    expected = base - np.float32(0.3) * update
    SGD(0.3).apply(base, update, ())
    np.testing.assert_array_equal(base, expected)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nesterov_is_the_textbook_formula_over_several_rounds(n: int, dtype: str) -> None:
    lr, mu = np.dtype(dtype).type(0.7), np.dtype(dtype).type(0.9)
    base = vector(n, 0, dtype)
    expected, m = base.copy(), np.zeros(n, dtype)
    state = Nesterov(0.7, 0.9).state_like(n, base.dtype)
    for seed in range(1, 5):
        update = vector(n, seed, dtype)
        before = update.copy()
        Nesterov(0.7, 0.9).apply(base, update, state)
        m = mu * m + update
        expected = expected - lr * (update + mu * m)
        np.testing.assert_array_equal(base, expected)
        np.testing.assert_array_equal(state[0], m)
        np.testing.assert_array_equal(update, before)


def test_nesterov_agrees_with_the_sgd_of_torch() -> None:
    torch = pytest.importorskip("torch")
    base = vector(500, 0)
    p = torch.nn.Parameter(torch.from_numpy(base.copy()))
    reference = torch.optim.SGD([p], lr=0.7, momentum=0.9, nesterov=True)
    state = Nesterov(0.7, 0.9).state_like(500, base.dtype)
    for seed in range(1, 6):
        update = vector(500, seed)
        Nesterov(0.7, 0.9).apply(base, update, state)
        p.grad = torch.from_numpy(update)
        reference.step()
        np.testing.assert_allclose(base, p.detach().numpy(), rtol=1e-6, atol=1e-6)
