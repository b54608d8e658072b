"""The values of largest magnitude, and where they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from manyhands.errors import StrategyError
from manyhands.sharing.combine import Array
from manyhands.sharing.encode import positions
from manyhands.sharing.encode.stage import PIECE, Bytes

CHUNK = 4096
"""As in SparseLoCo (arXiv 2508.15706)."""


@dataclass(frozen=True)
class TopK:
    """Of each chunk of c values the k = ⌈density·c⌉ of largest magnitude; the others become zero.

    Of equal magnitudes the first are kept. The last chunk of a piece may be shorter. |error| is at most
    the least magnitude kept in the chunk. The place of a value takes 2 + log₂(1/density) bits: 8 at 1/64.
    Of what several `contributions` are combined to, as many times k are kept: all that any of them kept.
    """

    density: float
    chunk: int = CHUNK
    contributions: int = 1

    def __post_init__(self) -> None:
        density, chunk, contributions = self.density, self.chunk, self.contributions
        problems = []
        if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density <= 1:
            problems.append(f"TopK: density={density!r} must be a number above 0, up to 1; 1 / 64 is usual.")
        if isinstance(chunk, bool) or not isinstance(chunk, int) or not 1 <= chunk <= PIECE:
            problems.append(
                f"TopK: chunk={chunk!r} must be a whole number of values from 1 to {PIECE}; {CHUNK} is usual."
            )
        if isinstance(contributions, bool) or not isinstance(contributions, int) or contributions < 1:
            problems.append(f"TopK: contributions={contributions!r} must be a whole number, 1 or more.")
        if problems:
            raise StrategyError("\n".join(problems))

    def __repr__(self) -> str:
        chunk = "" if self.chunk == CHUNK else f", chunk={self.chunk}"
        contributions = "" if self.contributions == 1 else f", contributions={self.contributions}"
        return f"TopK({self.density}{chunk}{contributions})"

    def combined(self, contributions: int) -> TopK:
        return replace(self, contributions=self.contributions * contributions)

    @property
    def limit(self) -> float:
        return math.inf

    def nbytes(self, n: int, dtype: np.dtype[Any]) -> int:  # noqa: ARG002
        return positions.nbytes(self.kept(n), n) if n else 0

    def kept(self, n: int) -> int:
        chunks, rest = divmod(n, self.chunk)
        return chunks * self._kept_of(self.chunk) + self._kept_of(rest)

    def encode(self, x: Array, out: Bytes) -> Array:
        size = np.abs(x)
        kept = np.empty(len(x), bool)
        whole = len(x) - len(x) % self.chunk
        for a, b, length in ((0, whole, self.chunk), (whole, len(x), len(x) - whole)):
            if a < b:
                rows = size[a:b].reshape(-1, length)
                kept[a:b] = _largest(rows, self._kept_of(length)).ravel()
        places = np.flatnonzero(kept)
        positions.write(places, len(x), out)
        return x[places]

    def decode(self, data: Bytes, kept: Array, out: Array) -> None:
        out[...] = 0
        out[positions.read(data, len(kept), len(out))] = kept

    def _kept_of(self, length: int) -> int:
        return min(length, self.contributions * math.ceil(self.density * length))


def _largest(rows: Array, k: int) -> Array:
    """Marks the `k` largest of each row, of equal ones the first."""
    least = np.partition(rows, -k, axis=1)[:, -k, None]
    marks = rows >= least
    tied = np.flatnonzero(np.count_nonzero(marks, axis=1) > k)
    if len(tied):
        above, equal = rows[tied] > least[tied], rows[tied] == least[tied]
        room = k - np.count_nonzero(above, axis=1)
        marks[tied] = above | (equal & (np.cumsum(equal, axis=1) <= room[:, None]))
    return marks
