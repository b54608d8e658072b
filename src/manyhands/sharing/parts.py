"""A packed state in parts that are known by their digests: alike where two workers hold the same bits."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

import numpy as np
import xxhash

from manyhands.errors import WireError
from manyhands.sharing import tree

PART_BYTES: Final = 1 << 20
"""40 MB from three donors in larger ones of 4 MiB take a quarter longer: two wait for the last one."""

DIGEST_BYTES: Final = 16


def digest_of(part: bytes | bytearray | memoryview) -> bytes:
    """XXH3 (128 bits) of a part."""
    return xxhash.xxh3_128_digest(part)


@dataclass(frozen=True)
class Cut:
    """How a packed state of `length` bytes is cut: what lies before its arrays, and the arrays from there on,
    in pieces of `PART_BYTES` each. So arrays are cut alike whatever else stands in front of them.

    `digests` of all parts, one after the other. Raises WireError where they are not as many as the parts.
    """

    length: int
    arrays: int
    digests: bytes

    def __post_init__(self) -> None:
        fits = 0 <= self.arrays <= self.length
        parts = -(-self.arrays // PART_BYTES) - (-(self.length - self.arrays) // PART_BYTES)
        if not fits or len(self.digests) != parts * DIGEST_BYTES:
            raise WireError(
                f"a state of {self.length} bytes with arrays from byte {self.arrays} on has {parts} parts, "
                f"and not {len(self.digests)} bytes of digests"
            )

    @classmethod
    def of(cls, packed: bytearray) -> Self:
        """Of a state packed by `tree.pack`."""
        view, arrays = memoryview(packed), tree.arrays_of(packed)
        bounds = _bounds(len(packed), arrays)
        return cls(len(packed), arrays, b"".join(digest_of(view[a:b]) for a, b in bounds))

    @property
    def parts(self) -> list[bytes]:
        """The digest of each part."""
        starts = range(0, len(self.digests), DIGEST_BYTES)
        return [self.digests[start : start + DIGEST_BYTES] for start in starts]

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Where each part begins and ends."""
        return _bounds(self.length, self.arrays)


def _bounds(length: int, arrays: int) -> list[tuple[int, int]]:
    starts = [*range(0, arrays, PART_BYTES), *range(arrays, length, PART_BYTES)]
    return list(pairwise([*starts, length]))


class Assembly:
    """A state that is put together; `lacking` are the digests of the parts that are not here yet, in order.

    What `before` has of it is taken from there.
    """

    def __init__(self, cut: Cut, before: Assembly | None = None) -> None:
        self.packed = np.empty(cut.length, np.uint8).data
        self._places: dict[bytes, list[tuple[int, int]]] = {}
        for digest, bounds in zip(cut.parts, cut.bounds, strict=True):
            self._places.setdefault(digest, []).append(bounds)
        self.lacking = dict.fromkeys(self._places)
        if before is not None:
            for digest, (place, *_) in before._places.items():
                if digest in self.lacking and digest not in before.lacking:
                    self.put(digest, before.packed[slice(*place)])

    def put(self, digest: bytes, part: memoryview) -> None:
        """A part that is known to have this digest, to wherever it belongs."""
        for start, stop in self._places[digest]:
            self.packed[start:stop] = part
        self.lacking.pop(digest, None)
