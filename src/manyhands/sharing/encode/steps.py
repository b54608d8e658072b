"""Blocks of values as whole multiples of a step, in 4 or 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from manyhands.errors import WireError
from manyhands.sharing.combine import Array
from manyhands.sharing.encode.stage import Bytes


def encode(x: Array, block: int, levels: int) -> tuple[Array, Bytes]:
    """The step of each block, in the dtype of `x`; and a code for each value, from 0 to 2·`levels`.

    A value is (code − levels)·step, rounded to the nearest, and the step max|block|/levels. It is never
    subnormal: of such values nothing need be left but zero.
    """
    largest = np.maximum.reduceat(np.abs(x), np.arange(0, len(x), block))
    step = np.clip(largest / levels, *_limits(x.dtype, levels))
    scaled = np.repeat(1 / step, block)[: len(x)]
    scaled *= x
    np.rint(scaled, out=scaled)
    scaled += levels
    return step, scaled.astype(np.uint8)


def decode(step: Array, codes: Bytes, block: int, levels: int, out: Array) -> None:
    """Undo `encode`. Raises `WireError` for a step or a code that it never gives."""
    least, most = _limits(out.dtype, levels)
    bad = ~((step >= least) & (step <= most))
    if bad.any():
        raise WireError(f"scale: {step[bad][0]}, expected {least} to {most}")
    if codes.max() > 2 * levels:
        raise WireError(f"code: {codes.max()}, expected {2 * levels} at most")
    np.copyto(out, codes)
    out -= levels
    out *= np.repeat(step, block)[: len(out)]


def _limits(dtype: np.dtype[Any], levels: int) -> tuple[Any, Any]:
    """The least step that is normal, and the greatest of which `levels` are still finite."""
    info = np.finfo(dtype)
    return info.tiny, np.nextafter(info.max / dtype.type(levels), dtype.type(0))
