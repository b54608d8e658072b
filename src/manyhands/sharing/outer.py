"""Outer optimisers: what the pool does with the averaged update of a round.

An update is *base − local*, so it points where a gradient points: against the way to go. Each
optimiser is a value with two pure functions over flat arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from manyhands.errors import StrategyError
from manyhands.sharing.combine import BLOCK, Array


@dataclass(frozen=True)
class SGD:
    """base ← base − lr·update. With `lr` 1 it is plain averaging: base − (base − mean) = mean."""

    lr: float = 1.0

    def __post_init__(self) -> None:
        _check_rate("SGD", self.lr)

    def __repr__(self) -> str:
        return f"SGD({self.lr})"

    def state_like(self, n: int, dtype: np.dtype[Any]) -> tuple[Array, ...]:  # noqa: ARG002
        """No state."""
        return ()

    def apply(self, base: Array, update: Array, state: Sequence[Array]) -> None:  # noqa: ARG002
        """Change `base` in place; `update` is only read. Flat arrays of one length and dtype."""
        if self.lr == 1.0:
            np.subtract(base, update, out=base)
            return
        lr = base.dtype.type(self.lr)
        scratch = np.empty(min(BLOCK, len(base)), base.dtype)
        for a in range(0, len(base), BLOCK):
            block = base[a : a + BLOCK]
            step = scratch[: len(block)]
            np.multiply(update[a : a + BLOCK], lr, out=step)
            np.subtract(block, step, out=block)


@dataclass(frozen=True)
class Nesterov:
    """m ← µm + u; base ← base − lr·(u + µm): the outer optimiser of DiLoCo (arXiv 2311.08105).

    The form is that of `torch.optim.SGD(nesterov=True)`.
    """

    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check_rate("Nesterov", self.lr)
        if not _is_number(self.momentum) or not 0 <= self.momentum < 1:
            raise StrategyError(
                f"Nesterov: momentum={self.momentum!r} must be a number from 0 up to, not including, 1; "
                "0.9 is usual"
            )

    def __repr__(self) -> str:
        return f"Nesterov({self.lr}, {self.momentum})"

    def state_like(self, n: int, dtype: np.dtype[Any]) -> tuple[Array, ...]:
        """The momentum, `n` elements of `dtype`, zero."""
        return (np.zeros(n, dtype),)

    def apply(self, base: Array, update: Array, state: Sequence[Array]) -> None:
        """Change `base` and `state` in place; `update` is only read. Flat arrays of one length and dtype."""
        (momentum,) = state
        lr, mu = base.dtype.type(self.lr), base.dtype.type(self.momentum)
        scratch = np.empty(min(BLOCK, len(base)), base.dtype)
        for a in range(0, len(base), BLOCK):
            block, m, u = base[a : a + BLOCK], momentum[a : a + BLOCK], update[a : a + BLOCK]
            step = scratch[: len(block)]
            np.multiply(m, mu, out=m)
            np.add(m, u, out=m)
            np.multiply(m, mu, out=step)
            np.add(step, u, out=step)
            np.multiply(step, lr, out=step)
            np.subtract(block, step, out=block)


Outer = SGD | Nesterov


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_rate(kind: str, lr: object) -> None:
    if not _is_number(lr) or lr <= 0:  # type: ignore[operator]
        raise StrategyError(f"{kind}: lr={lr!r} must be a number above 0; 1.0 takes the average as it is")
