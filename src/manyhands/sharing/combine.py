"""How contributions to one slice become one: the weighted mean, in rank order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from manyhands.errors import ProtocolError

Array = np.ndarray[Any, Any]

BLOCK = 1 << 17
"""Elements combined at a time. Measured over 4 inputs of 25 MB: 8 Ki 8.2 ms, 64 Ki 5.8 ms, 128 Ki 5.2 ms;
beyond that the block of float32 leaves the second-level cache of small machines."""


@dataclass(frozen=True)
class Mean:
    """The weighted mean of all contributions, Σ wᵢxᵢ / Σ wᵢ."""

    def __repr__(self) -> str:
        return "Mean()"


def mean(out: Array, inputs: Sequence[Array], weights: Sequence[float]) -> None:
    """Write Σ wᵢxᵢ / Σ wᵢ into `out`, summing in the order given.

    All arrays are one-dimensional and have the length and dtype (float32 or float64) of `out`; the
    sum is kept in that dtype. The result has the same bits for the same inputs, weights and order.
    An input of weight zero is never read, so it may hold anything; without any weight `out` becomes
    zero. `out` may be one of the inputs itself (each block is read before it is written), but must
    not overlap one in any other way. Raises `ProtocolError` for a weight that is no weight.
    """
    if len(inputs) != len(weights):
        raise ProtocolError(f"{len(inputs)} contributions came with {len(weights)} weights")
    if any(weight < 0 or not math.isfinite(weight) for weight in weights):
        raise ProtocolError(f"the weights {list(weights)} must be finite and not negative")
    counted = [(x, weight) for x, weight in zip(inputs, weights, strict=True) if weight > 0]
    if not counted:
        out[...] = 0
        return
    if len(counted) == 1:
        np.copyto(out, counted[0][0])
        return
    with np.errstate(invalid="ignore", over="ignore"):  # a GradScaler lets infinities through
        if all(weight == counted[0][1] for _, weight in counted):
            _mean_of_equals(out, [x for x, _ in counted])
        else:
            total = math.fsum(weight for _, weight in counted)
            shares = [out.dtype.type(weight / total) for _, weight in counted]
            _weighted(out, [x for x, _ in counted], shares)


def _mean_of_equals(out: Array, inputs: list[Array]) -> None:
    share = out.dtype.type(1 / len(inputs))
    scratch = np.empty(min(BLOCK, len(out)), out.dtype)
    for a in range(0, len(out), BLOCK):
        block = out[a : a + BLOCK]
        b = a + len(block)
        total = scratch[: len(block)]
        np.add(inputs[0][a:b], inputs[1][a:b], out=total)
        for x in inputs[2:]:
            np.add(total, x[a:b], out=total)
        np.multiply(total, share, out=block)


def _weighted(out: Array, inputs: list[Array], shares: list[Any]) -> None:
    scratch = np.empty((2, min(BLOCK, len(out))), out.dtype)
    for a in range(0, len(out), BLOCK):
        block = out[a : a + BLOCK]
        b = a + len(block)
        total, term = scratch[0, : len(block)], scratch[1, : len(block)]
        np.multiply(inputs[0][a:b], shares[0], out=total)
        for x, share in zip(inputs[1:-1], shares[1:-1], strict=True):
            np.multiply(x[a:b], share, out=term)
            np.add(total, term, out=total)
        np.multiply(inputs[-1][a:b], shares[-1], out=term)
        np.add(total, term, out=block)


def finite(array: Array) -> bool:
    """Whether a flat float array holds no NaN and no infinity.

    The least and the greatest element tell (either is NaN if any is), and numpy finds them without
    a temporary: 0.8 ms for 25 MB, against 1.1 ms of `isfinite`. A dot product takes 0.5 ms, but
    starts the threads of the BLAS library, which then spin beside the training.
    """
    for a in range(0, len(array), BLOCK):
        block = array[a : a + BLOCK]
        if not (math.isfinite(block.min()) and math.isfinite(block.max())):
            return False
    return True


def blemish(array: Array) -> str:
    """What is wrong with an array that is not finite: "NaN" or "an infinity"."""
    return "NaN" if bool(np.isnan(array).any()) else "an infinity"
