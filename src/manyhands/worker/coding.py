"""Slices as they travel between members where a strategy encodes them, and what the encoding has lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from manyhands.errors import ModelError, Unencodable
from manyhands.sharing.combine import Array
from manyhands.sharing.encode.chain import Encoding
from manyhands.sharing.encode.stage import Bytes
from manyhands.sharing.layout import Layout

Lost = tuple[Array, Array]
"""What an encoding has lost of some elements as of the last version, to read; in this round, to write."""


class Residual:
    """What an encoding with feedback has lost: as of the last version, and in the round under way.

    Who has taken a part may write to it when the view has changed: what is kept then is a copy.
    """

    def __init__(self, encoding: Encoding, elements: int, dtype: np.dtype[Any]) -> None:
        self._number = 2 if encoding.feedback is not None else 0
        self._elements, self._dtype = elements, dtype
        self._vectors, self._taken = self._zeros(), False

    def part(self, a: int, b: int) -> Lost | None:
        """Of elements [a, b); None where nothing is fed back."""
        if not self._number:
            return None
        self._taken = True
        old, new = self._vectors
        return old[a:b], new[a:b]

    def commit(self) -> None:
        """The round counts: what it lost is fed back into the next one."""
        self._vectors.reverse()

    def keep(self, parts: Iterable[tuple[int, int]]) -> None:
        """Nothing has been lost but of elements [a, b) of these."""
        if self._taken:
            kept = self._zeros()
            for a, b in parts:
                for fresh, vector in zip(kept, self._vectors, strict=True):
                    fresh[a:b] = vector[a:b]
            self._vectors = kept

    def owed(self) -> list[Array]:
        """As of the last version: a vector, where anything is fed back."""
        return self._vectors[:1]

    def owe(self, vector: Array) -> None:
        """Have lost this as of the last version."""
        if self._number and vector.shape != (self._elements,):
            raise ModelError(
                f"what an encoding has lost of {vector.size} elements does not fit {self._elements}: go on "
                "with the model and the strategy that the checkpoint is of"
            )
        if self._number:
            self._vectors[0], self._taken = vector.astype(self._dtype), True

    def forget(self) -> None:
        """Nothing has been lost."""
        self._vectors = self._zeros()
        self._taken = False

    def _zeros(self) -> list[Array]:
        """They take no memory where nothing is written to them."""
        return [np.zeros(self._elements, self._dtype) for _ in range(self._number)]


class Made(NamedTuple):
    """What a slice belongs to: view, base, and the set of contributions that it is made of."""

    view: int
    base: int
    subset: int


class Sent(NamedTuple):
    """The bytes of a slice."""

    made: Made
    content: Bytes


class Coding:
    """Encodes what this member contributes for its host, and the slices that it combines; decodes others'.

    What was encoded is kept until the next round, to be sent again to who lacks it. The residual of the
    contributions stays with the worker from view to view, as far as it encodes the same slices; that of the
    combined ones ends with the view, for then other slices are this member's. What is about the residual is
    called under the worker's lock, the rest by one thread at a time for each segment.

    The result of a round does not depend on who combines what: also what the own host contributes counts as
    what others would have decoded, in its place among the hosts, and who combined a slice adopts what the
    others decode of it.

    So many `fragments` take turns, one for each version; what was lost of one is fed back into the same one.
    """

    def __init__(self, encoding: Encoding, layout: Layout, fragments: int = 1) -> None:
        self._encoding, self._layout = encoding, layout
        self._losses, self._losses_of_means = (
            [Residual(encoding, layout.elements, layout.dtype) for _ in range(fragments)] for _ in range(2)
        )
        self._contributed: dict[tuple[int, int], Sent] = {}
        self._combined: dict[int, Sent] = {}

    # --- what is lost, under the lock --------------------------------------------------------------

    def join(self, encoded: Iterable[tuple[int, int]]) -> None:
        """A view takes effect: of contributions, elements [a, b) are encoded here."""
        encoded = tuple(encoded)
        for lost, lost_of_means in zip(self._losses, self._losses_of_means, strict=True):
            lost.keep(encoded)
            lost_of_means.forget()

    def lost(self, base: int, a: int, b: int) -> Lost | None:
        """Of elements [a, b) of contributions, which are encoded for the version after `base`."""
        return self._losses[base % len(self._losses)].part(a, b)

    def lost_of_means(self, base: int, a: int, b: int) -> Lost | None:
        """The same of what is combined here."""
        return self._losses_of_means[base % len(self._losses)].part(a, b)

    def commit(self, made: Made, *, counted: bool) -> None:
        """A round has made a version of this set; `counted`: what was encoded last to contribute is in it."""
        fragment = made.base % len(self._losses)
        if counted:
            self._losses[fragment].commit()
        if any(sent.made == made for sent in list(self._combined.values())):
            self._losses_of_means[fragment].commit()

    def forget(self) -> None:
        """This worker takes up the state of another: what was lost of its own is of no use."""
        for lost in self._losses:
            lost.forget()

    def owed(self) -> list[Array]:
        """What was lost of contributions as of the last version, a vector for each fragment."""
        return [vector for lost in self._losses for vector in lost.owed()]

    def owe(self, owed: Sequence[Array]) -> None:
        """Have lost this; raises ModelError where it is not of these fragments."""
        for lost, vector in zip(self._losses, owed, strict=False):
            lost.owe(vector)

    # --- slices ------------------------------------------------------------------------------------

    def nbytes(self, elements: int, hosts: int, *, combined: bool) -> int:
        """Bytes of an encoded slice among so many hosts."""
        return self._way(hosts, combined).nbytes(elements, self._layout.dtype)

    def decode(self, data: Bytes, out: Array, hosts: int, *, combined: bool) -> None:
        """Raises WireError for bytes that no member encodes."""
        self._way(hosts, combined).decode(data, out)

    def _way(self, hosts: int, combined: bool) -> Encoding:
        return self._encoding.combined(hosts) if combined else self._encoding

    def problem(self, values: Array) -> str:
        """Why a contribution, or a part of one, cannot be encoded; "" where it can."""
        return self._encoding.problem(values)

    def contribution(self, segment: int, slice_: int, made: Made, values: Array, lost: Lost | None) -> Bytes:
        """What a slice of a contribution is encoded to: once in a round."""
        content = self.contributed(segment, slice_, made)
        return self.gathered(segment, slice_, made, values, lost) if content is None else content

    def gathered(self, segment: int, slice_: int, made: Made, values: Array, lost: Lost | None) -> Bytes:
        """What a slice of the mean of several contributions is encoded to."""
        content = _encode(self._encoding, values, lost)
        self._contributed[segment, slice_] = Sent(made, content)
        return content

    def contributed(self, segment: int, slice_: int, made: Made) -> Bytes | None:
        """What was encoded last of a slice of contributions, if it is of this round and set."""
        sent = self._contributed.get((segment, slice_))
        return sent.content if sent is not None and sent.made == made else None

    def combine(
        self, segment: int, made: Made, hosts: int, mean: Array, out: Array, lost: Lost | None
    ) -> None:
        """Encode the mean of the own slice; have in `out` what members decode of it."""
        way = self._encoding.combined(hosts)
        content = _encode(way, mean, lost)
        way.decode(content, out)
        self._combined[segment] = Sent(made, content)

    def combined(self, segment: int, made: Made) -> Bytes | None:
        """What was encoded last of the own slice of a segment, if it is of this round and set."""
        sent = self._combined.get(segment)
        return sent.content if sent is not None and sent.made == made else None


def _encode(way: Encoding, values: Array, lost: Lost | None) -> Bytes:
    """Encode a slice, with what was lost unless that makes it too great.

    A contribution can be encoded, or is not announced. A mean of such may be rounded to just beyond what
    can, or overflow; and who reads it where a member of the host writes again may read anything. The
    nearest values that can be encoded are sent then, and no round waits for a slice that does not come.
    """
    content = np.empty(way.nbytes(len(values), values.dtype), np.uint8)
    try:
        way.encode(values, content, lost)
    except Unencodable:
        fresh = lost and (np.zeros_like(values), lost[1])
        way.encode(way.nearest(values), content, fresh)
    return content
