"""Slices as they travel between members where a strategy encodes them, and what the encoding has lost."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from manyhands.sharing.combine import Array
from manyhands.sharing.encode.chain import Encoding
from manyhands.sharing.encode.stage import Bytes
from manyhands.sharing.layout import Layout


class Residual:
    """What an encoding with feedback has lost: as of the last version, and in the round under way."""

    def __init__(self, encoding: Encoding, elements: int, dtype: np.dtype[Any]) -> None:
        vectors = 2 if encoding.feedback is not None else 0
        self._vectors = [np.zeros(elements, dtype) for _ in range(vectors)]

    def part(self, a: int, b: int) -> tuple[Array, Array] | None:
        """To read and to write, for elements [a, b)."""
        if not self._vectors:
            return None
        old, new = self._vectors
        return old[a:b], new[a:b]

    def commit(self) -> None:
        """The round counts: what it lost is fed back into the next one."""
        self._vectors.reverse()

    def forget(self) -> None:
        """Nothing has been lost."""
        for vector in self._vectors:
            vector.fill(0)


class Sent(NamedTuple):
    """The bytes of a slice, and the base and subset that they belong to."""

    base: int
    subset: int
    content: Bytes


class Coding:
    """Encodes this member's contributions, and the slices that it combines; decodes what others encoded.

    What was encoded is kept until the next round, to be sent again to who lacks it. The residual of the
    contributions stays with the worker from view to view; that of the combined slices ends with the view, for
    then other slices are this member's. Not locked: one thread at a time may use a segment.

    The result of a round does not depend on who combines what: also the own contribution counts as what
    others would have decoded, and who combined a slice adopts what the others decode of it.
    """

    def __init__(self, encoding: Encoding, layout: Layout) -> None:
        self._layout = layout
        self._up = self._down = encoding
        self._lost = Residual(encoding, layout.elements, layout.dtype)
        self._lost_of_means = Residual(encoding, layout.elements, layout.dtype)
        self._contributed: dict[tuple[int, int], Sent] = {}
        self._combined: dict[int, Sent] = {}

    def join(self, size: int) -> None:
        """A view of so many members takes effect: slices are cut anew."""
        self._down = self._up.combined(size)
        self._lost_of_means.forget()
        self._contributed, self._combined = {}, {}

    def nbytes(self, elements: int, *, combined: bool) -> int:
        """Bytes of an encoded slice."""
        return (self._down if combined else self._up).nbytes(elements, self._layout.dtype)

    def decode(self, data: Bytes, out: Array, *, combined: bool) -> None:
        """Raises WireError for bytes that no member encodes."""
        (self._down if combined else self._up).decode(data, out)

    def contribution(self, segment: int, rank: int, base: int, vector: Array, a: int, b: int) -> Bytes:
        """What elements [a, b) of a contribution are encoded to; Unencodable where they cannot be."""
        sent = self._contributed.get((segment, rank))
        if sent is None or sent.base != base:
            sent = Sent(base, 0, np.empty(self.nbytes(b - a, combined=False), np.uint8))
            self._up.encode(vector[a:b], sent.content, self._lost.part(a, b))
            self._contributed[segment, rank] = sent
        return sent.content

    def combine(self, segment: int, base: int, subset: int, mean: Array, out: Array, a: int, b: int) -> None:
        """Encode the mean of elements [a, b), and have in `out` what members will decode of it."""
        sent = Sent(base, subset, np.empty(self.nbytes(b - a, combined=True), np.uint8))
        self._down.encode(mean, sent.content, self._lost_of_means.part(a, b))
        self._down.decode(sent.content, out)
        self._combined[segment] = sent

    def combined(self, segment: int, base: int, subset: int) -> Bytes | None:
        """What was encoded last of the own slice of a segment, if it is of this round and set."""
        sent = self._combined.get(segment)
        return sent.content if sent is not None and (sent.base, sent.subset) == (base, subset) else None

    def commit(self, base: int, *, counted: bool) -> None:
        """The round on `base` has made a version; `counted`: the own contribution is in it."""
        if counted and any(sent.base == base for sent in self._contributed.values()):
            self._lost.commit()
        if any(sent.base == base for sent in self._combined.values()):
            self._lost_of_means.commit()

    def forget(self) -> None:
        """This worker takes up the state of another: what was lost of its own is of no use."""
        self._lost.forget()
