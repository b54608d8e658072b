"""A seeded permutation of range(n) that stores no list: 10¹² samples are shuffled in a few bytes.

A generalised Feistel network on Z_a × Z_b with cycle walking: J. Black and P. Rogaway, "Ciphers with
Arbitrary X"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from manyhands.errors import DataError

LONGEST = 1 << 62
"""The most samples a data set may have: a 32-bit hash times a half of the domain still fits 64 bits."""

_ROUNDS = 16  # with 8, some orders of 5 to 7 samples come noticeably more often than others
_CHUNK = 8192  # positions worked on at a time: all buffers stay in the processor's second cache
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93))


@dataclass(frozen=True)
class Shuffle:
    """The order in which one epoch visits samples 0 … length-1.

    The same (length, seed, epoch) gives the same order in every process and on every machine;
    another seed or epoch gives an unrelated one. `seed` None keeps the samples in their own order.
    Raises DataError for a length below 0 or above 2⁶².
    """

    length: int
    seed: int | None
    epoch: int
    _keys: tuple[np.uint64, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.length <= LONGEST:
            raise DataError(f"cannot shuffle {self.length} samples: the length must be 0 to 2^62")
        key = hashlib.shake_128(f"{self.seed}/{self.epoch}".encode()).digest(8 * _ROUNDS)
        object.__setattr__(self, "_keys", tuple(np.frombuffer(key, "<u8").astype(np.uint64)))

    def index(self, position: int) -> int:
        """The sample at this position; IndexError outside 0 … length-1."""
        return int(self.indices(position, position + 1)[0])

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """The samples at positions [start, stop): int64 of shape (stop - start,).

        Raises IndexError unless 0 <= start <= stop <= length.
        """
        if not 0 <= start <= stop <= self.length:
            raise IndexError(f"positions [{start}, {stop}) are not within the {self.length} samples")
        order = np.arange(start, stop, dtype=np.int64)
        self._walk(order, back=False)
        return order

    def positions(self, start: int, stop: int) -> NDArray[np.int64]:
        """Where samples [start, stop) are: the inverse of `indices`, with the same shape and errors."""
        if not 0 <= start <= stop <= self.length:
            raise IndexError(f"samples [{start}, {stop}) are not within the {self.length}")
        places = np.arange(start, stop, dtype=np.int64)
        self._walk(places, back=True)
        return places

    def _walk(self, numbers: NDArray[np.int64], *, back: bool) -> None:
        if self.seed is None or self.length < 2:
            return
        for at in range(0, len(numbers), _CHUNK):
            part = numbers[at : at + _CHUNK].view(np.uint64)
            self._permute(part, back=back)
            outside = np.flatnonzero(part >= np.uint64(self.length))
            while outside.size:
                walking = part[outside]
                self._permute(walking, back=back)
                part[outside] = walking
                outside = outside[walking >= np.uint64(self.length)]

    def _permute(self, values: NDArray[np.uint64], *, back: bool) -> None:
        """Map `values` in place by one pass through the network, a bijection of range(a·b); or `back`."""
        # Even, because all shifts of an odd cycle are even permutations: half of all orders would be rare.
        rows = (isqrt(self.length - 1) + 2) & ~1
        a, b = np.uint64(rows), np.uint64(-(-self.length // rows))
        left = values // b
        right = values - left * b
        mixed, high = np.empty_like(values), np.empty_like(values)
        rounds = list(enumerate(self._keys))
        for number, key in reversed(rounds) if back else rounds:
            target, source, modulus = (left, right, a) if number % 2 == 0 else (right, left, b)
            np.add(source, key, out=mixed)
            np.multiply(mixed, _MULTIPLIERS[0], out=mixed)
            np.right_shift(mixed, _HALF, out=high)
            np.bitwise_xor(mixed, high, out=mixed)
            np.multiply(mixed, _MULTIPLIERS[1], out=mixed)
            np.right_shift(mixed, _HALF, out=mixed)
            np.multiply(mixed, modulus, out=mixed)
            np.right_shift(mixed, _HALF, out=mixed)
            if back:
                np.subtract(modulus, mixed, out=mixed)
            np.add(target, mixed, out=target)
            # Below the modulus the difference wraps round to a huge number, and the sum is kept.
            np.subtract(target, modulus, out=mixed)
            np.minimum(target, mixed, out=target)
        np.multiply(left, b, out=left)
        np.add(left, right, out=values)
