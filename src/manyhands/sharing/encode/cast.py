"""Values in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from manyhands.errors import StrategyError, Unencodable, WireError
from manyhands.sharing.combine import Array
from manyhands.sharing.encode.stage import Bytes

_INFINITY: Final = {"float16": 0x7C00, "bfloat16": 0x7F80}
"""The bits of infinity; those of greater magnitude are NaN, all others finite numbers."""

_LIMIT: Final = {"float16": 65520.0, "bfloat16": 3.39e38}
"""Halfway from the greatest number to the next power of two; a little less for bfloat16, where a float64 is
rounded to a float32 first."""

_REMEDY: Final = {
    "float16": 'beyond ±65504; use Cast("bfloat16"), which has the range of float32',
    "bfloat16": "beyond ±3.39e38",
}


@dataclass(frozen=True)
class Cast:
    """Each value rounded to the nearest float16 or bfloat16, of two the even one; 2 bytes.

    |error| ≤ 2⁻¹¹·|x|, or 2⁻²⁵ where that is more, for float16; 2⁻⁸·|x|, or 2⁻¹³⁴, for bfloat16 (float64 is
    rounded to float32 first: a 2⁻¹⁶th more). A value beyond the range is refused with `Unencodable`, not
    saturated: a contribution is what its worker learned, or it is left out by name.
    """

    dtype: Literal["float16", "bfloat16"]

    def __post_init__(self) -> None:
        if self.dtype not in _INFINITY:
            raise StrategyError(f'Cast: dtype={self.dtype!r} is not known; use "float16" or "bfloat16".')

    def __repr__(self) -> str:
        return f'Cast("{self.dtype}")'

    @property
    def limit(self) -> float:
        return _LIMIT[self.dtype]

    def nbytes(self, n: int, dtype: np.dtype[Any]) -> int:  # noqa: ARG002
        return 2 * n

    def kept(self, n: int) -> int:  # noqa: ARG002
        return 0

    def combined(self, contributions: int) -> Cast:  # noqa: ARG002
        return self

    def encode(self, x: Array, out: Bytes) -> Array:
        bits = out.view(np.uint16)
        with np.errstate(over="ignore"):
            if self.dtype == "float16":
                np.copyto(out.view(np.float16), x, casting="same_kind")
            else:
                _round_to_bfloat16(x.astype(np.float32, copy=False), bits)
        if not self._is_finite(bits):
            raise Unencodable(
                f"{self}: the vector holds {x[np.argmax(np.abs(x))]:.6g}, {_REMEDY[self.dtype]}"
            )
        return x[:0]

    def decode(self, data: Bytes, kept: Array, out: Array) -> None:  # noqa: ARG002
        bits = data.view(np.uint16)
        if not self._is_finite(bits):
            raise WireError(f"an encoded slice holds NaN or an infinity as {self.dtype}")
        if self.dtype == "float16":
            np.copyto(out, data.view(np.float16))
        else:
            np.copyto(out, np.left_shift(bits, 16, dtype=np.uint32).view(np.float32))

    def _is_finite(self, bits: Array) -> bool:
        return bool((bits & 0x7FFF).max() < _INFINITY[self.dtype])


def _round_to_bfloat16(x: Array, out: Array) -> None:
    """A bfloat16 is the upper half of a float32; adding just under a half of its last place rounds."""
    bits = x.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += bits
    rounded += 0x7FFF
    rounded >>= 16
    np.copyto(out, rounded, casting="same_kind")
