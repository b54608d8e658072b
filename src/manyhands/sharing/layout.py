"""Where each shared tensor lies in the one flat vector, and how that vector is cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from manyhands.core.messages import Tensor
from manyhands.errors import ProtocolError
from manyhands.sharing.combine import Array

LEAST_BYTES, MOST_BYTES = 2 << 20, 64 << 20
SEGMENTS = 4
"""A vector is cut into so many segments, unless they were too small or too large then.

Each message costs hand-overs of the GIL: on one host 100 MB are averaged the faster the fewer there are.
Several let encoding, sending and combining go on at the same time: between hosts at 100 Mbit/s 10 MB in 4
bits take 233 ms in one segment and 198 ms in five.
"""


class Part(NamedTuple):
    """Elements [a, b) of the tensor with this number, which begin at element `at` of a vector."""

    tensor: int
    a: int
    b: int
    at: int


@dataclass(frozen=True)
class Layout:
    """The shared tensors one after another, without gaps, and cut into segments of `segment_bytes`.

    Where that is not given, segments are a quarter of the vector, and of 2 to 64 MiB.
    The vector is float32, or float64 where any tensor is. All offsets count elements.
    """

    tensors: tuple[Tensor, ...]
    segment_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.segment_bytes is not None and self.segment_bytes < self.dtype.itemsize:
            raise ProtocolError(f"a segment of {self.segment_bytes} bytes holds no {self.dtype} at all")

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float64 if any(t.dtype == "float64" for t in self.tensors) else np.float32)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(tensor.shape) for tensor in self.tensors)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins."""
        offsets, at = [], 0
        for size in self.sizes:
            offsets.append(at)
            at += size
        return tuple(offsets)

    @property
    def elements(self) -> int:
        return sum(self.sizes)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @cached_property
    def _length(self) -> int:
        """Elements of a segment."""
        size = self.segment_bytes or min(max(self.nbytes // SEGMENTS, LEAST_BYTES), MOST_BYTES)
        return -(-size // self.dtype.itemsize) if self.segment_bytes is None else size // self.dtype.itemsize

    @cached_property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """[a, b) of each segment; together they are the whole vector."""
        length = self._length
        return tuple((a, min(a + length, self.elements)) for a in range(0, self.elements, length))

    @cached_property
    def touched(self) -> tuple[range, ...]:
        """For each tensor, the segments that hold a part of it; none for an empty tensor."""
        length = self._length
        return tuple(
            range(a // length, -(-(a + size) // length)) if size else range(0)
            for a, size in zip(self.offsets, self.sizes, strict=True)
        )

    def slices(self, segment: int, shares: Sequence[int]) -> list[tuple[int, int]]:
        """`slices` of the segment with this number."""
        return slices(self.segments[segment], shares)

    def parts(self, a: int, b: int) -> Iterator[Part]:
        """What lies in elements [a, b) of the flat vector, in a vector of these alone."""
        for i, (start, size) in enumerate(zip(self.offsets, self.sizes, strict=True)):
            first, last = max(a, start), min(b, start + size)
            if first < last:
                yield Part(i, first - start, last - start, first - a)

    def view(self, vector: Array, index: int, origin: int = 0) -> Array:
        """The part of a flat vector that is the tensor with this number, in its shape; no copy.

        The vector begins with element `origin`.
        """
        a = self.offsets[index] - origin
        return vector[a : a + self.sizes[index]].reshape(self.tensors[index].shape)


def slices(segment: tuple[int, int], shares: Sequence[int]) -> list[tuple[int, int]]:
    """Cut [a, b) into one slice for each rank, in order, each as long as its share of their sum says."""
    whole = sum(shares)
    if whole < 1 or min(shares) < 0:
        raise ProtocolError(f"a segment cannot be cut into shares of {[*shares]}")
    a, b = segment
    ends = [a + -(-(b - a) * end // whole) for end in accumulate(shares)]
    return list(zip([a, *ends[:-1]], ends, strict=True))
