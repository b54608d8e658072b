"""Slices as they travel between members where a strategy encodes them, and what the encoding has lost."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from manyhands.core.moves import Combine
from manyhands.core.rounds import subset_of
from manyhands.errors import Unencodable
from manyhands.sharing.combine import Array
from manyhands.sharing.encode.chain import Encoding
from manyhands.sharing.encode.stage import Bytes
from manyhands.sharing.layout import Layout


class Mine(NamedTuple):
    """Elements [a, b), which the member of this rank, of `size` members, combines."""

    rank: int
    size: int
    a: int
    b: int


class Residual:
    """What an encoding with feedback has lost: as of the last version, and in the round under way."""

    def __init__(self, encoding: Encoding, elements: int, dtype: np.dtype[Any]) -> None:
        self._number = 2 if encoding.feedback is not None else 0
        self._elements, self._dtype = elements, dtype
        self.forget()

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
        """Nothing has been lost. New zeros take no memory where nothing is written to them."""
        self._vectors = [np.zeros(self._elements, self._dtype) for _ in range(self._number)]


class Sent(NamedTuple):
    """The bytes of a slice, and what they belong to: view, base, and for a mean the set it is of."""

    view: int
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
        self._encoding, self._layout = encoding, layout
        self._lost = Residual(encoding, layout.elements, layout.dtype)
        self._lost_of_means = Residual(encoding, layout.elements, layout.dtype)
        self._contributed: dict[tuple[int, int], Sent] = {}
        self._combined: dict[int, Sent] = {}
        self._encoded = -1  # the base of what was encoded last of the contribution

    def join(self) -> None:
        """A view takes effect: slices are cut anew."""
        self._lost_of_means.forget()

    def nbytes(self, elements: int, size: int, *, combined: bool) -> int:
        """Bytes of an encoded slice among so many members."""
        return self._way(size, combined).nbytes(elements, self._layout.dtype)

    def decode(self, data: Bytes, out: Array, size: int, *, combined: bool) -> None:
        """Raises WireError for bytes that no member encodes."""
        self._way(size, combined).decode(data, out)

    def _way(self, size: int, combined: bool) -> Encoding:
        return self._encoding.combined(size) if combined else self._encoding

    def problem(self, vector: Array, a: int, b: int) -> str:
        """Why elements [a, b) of a contribution cannot be encoded; "" where they can."""
        residual = self._lost.part(a, b)
        return self._encoding.problem(vector[a:b], None if residual is None else residual[0])

    def contribution(
        self, segment: int, rank: int, view: int, base: int, vector: Array, a: int, b: int
    ) -> Bytes:
        """What elements [a, b) of a contribution are encoded to; Unencodable where they cannot be."""
        sent = self._contributed.get((segment, rank))
        if sent is None or (sent.view, sent.base) != (view, base):
            sent = Sent(view, base, 0, np.empty(self._encoding.nbytes(b - a, vector.dtype), np.uint8))
            self._encoding.encode(vector[a:b], sent.content, self._lost.part(a, b))
            self._contributed[segment, rank] = sent
            self._encoded = base
        return sent.content

    def combine(self, action: Combine, mine: Mine, mean: Array, out: Array) -> None:
        """Encode the mean of the own slice, and have in `out` what members will decode of it."""
        way, a, b = self._encoding.combined(mine.size), mine.a, mine.b
        content = np.empty(way.nbytes(b - a, mean.dtype), np.uint8)
        sent = Sent(action.view, action.base, subset_of(action.ranks), content)
        residual = self._lost_of_means.part(a, b)
        try:
            way.encode(mean, sent.content, residual)
        except Unencodable:  # the mean alone is as small as what it is of
            if residual is not None:
                residual[0].fill(0)
            way.encode(mean, sent.content, residual)
        way.decode(sent.content, out)
        self._combined[action.segment] = sent

    def combined(self, segment: int, view: int, base: int, subset: int) -> Bytes | None:
        """What was encoded last of the own slice of a segment, if it is of this round and set."""
        sent = self._combined.get(segment)
        return sent.content if sent is not None and sent[:3] == (view, base, subset) else None

    def commit(self, view: int, base: int, subset: int, *, counted: bool) -> None:
        """The round on `base` has made a version of this set; `counted`: the own contribution is in it."""
        if counted and self._encoded == base:
            self._lost.commit()
        if any(sent[:3] == (view, base, subset) for sent in self._combined.values()):
            self._lost_of_means.commit()

    def forget(self) -> None:
        """This worker takes up the state of another: what was lost of its own is of no use."""
        self._lost.forget()
