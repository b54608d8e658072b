"""Values in 8, 4 or 2 bits, with one scale, or two, for each block of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from manyhands.errors import StrategyError
from manyhands.sharing.combine import Array
from manyhands.sharing.encode import magnitudes, packing, steps
from manyhands.sharing.encode.stage import PIECE, Bytes

BLOCK = 128
"""Values to a scale, by what a bit is worth, which is half the error. On Laplace-distributed values, blocks
of 256 save 0.13 bits a value and cost 0.17 in error; blocks of 64 cost 0.25 and gain 0.19. On Gaussian ones
longer blocks are as good a bargain as these, on Student's t of 3 degrees shorter ones are.
"""


@dataclass(frozen=True)
class Quantize:
    """Each value in 8, 4 or 2 bits, in blocks of `block` values that share a scale.

    With 8 and 4 bits, the nearest of evenly spaced levels, zero among them: |error| ≤ 0.5001 steps, and
    the step is max|block|/127 (or 7), the least normal number at the least. With 2 bits, the sign and one of
    two magnitudes that suit the block: |error| ≤ max|block|. The norm of the error is then 0.34 of that of
    Gaussian values, but 0.07 of what `TopK(1 / 64)` keeps of them; and zero is seldom a level, so 2 bits
    belong behind `TopK`. Scales have the slice's dtype.

    Rounding is to nearest, never random: the sum of 200 like vectors in 4 bits is off by 0.22 of its norm, by
    0.02 with random rounding, and by 0.001 with `ErrorFeedback`.
    """

    bits: Literal[8, 4, 2] = 8
    block: int = BLOCK

    def __post_init__(self) -> None:
        problems = []
        if type(self.bits) is not int or self.bits not in (8, 4, 2):
            problems.append(f"Quantize: bits={self.bits!r} is not known; use 8, 4 or 2.")
        if isinstance(self.block, bool) or not isinstance(self.block, int) or not 1 <= self.block <= PIECE:
            problems.append(
                f"Quantize: block={self.block!r} must be a whole number of values from 1 to {PIECE}; "
                f"{BLOCK} is usual."
            )
        if problems:
            raise StrategyError("\n".join(problems))

    def __repr__(self) -> str:
        return f"Quantize({self.bits}{'' if self.block == BLOCK else f', block={self.block}'})"

    @property
    def limit(self) -> float:
        return math.inf

    def nbytes(self, n: int, dtype: np.dtype[Any]) -> int:
        return self._scales(n) * dtype.itemsize + packing.nbytes(n, self.bits)

    def kept(self, n: int) -> int:  # noqa: ARG002
        return 0

    def combined(self, contributions: int) -> Quantize:  # noqa: ARG002
        return self

    def encode(self, x: Array, out: Bytes) -> Array:
        if self.bits == 2:
            scales, codes = magnitudes.encode(x, self.block)
        else:
            scales, codes = steps.encode(x, self.block, self._levels)
        np.copyto(out[: scales.nbytes].view(x.dtype), scales)
        packing.pack(codes, self.bits, out[scales.nbytes :])
        return x[:0]

    def decode(self, data: Bytes, kept: Array, out: Array) -> None:  # noqa: ARG002
        start = self._scales(len(out)) * out.dtype.itemsize
        scales = data[:start].view(out.dtype)
        codes = packing.unpack(data[start:], self.bits, len(out))
        if self.bits == 2:
            magnitudes.decode(scales, codes, self.block, out)
        else:
            steps.decode(scales, codes, self.block, self._levels, out)

    @property
    def _levels(self) -> int:
        """How many levels there are on either side of zero."""
        return (1 << self.bits - 1) - 1

    def _scales(self, n: int) -> int:
        return -(-n // self.block) * (2 if self.bits == 2 else 1)
