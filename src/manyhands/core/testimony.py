"""What the workers of a storm say they hold, and what follows: samples lost, samples doubled, digests apart.

Each writes for itself, as it adopts a version; neither the hub nor the ledger has a hand in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from manyhands.core.intervals import Intervals
from manyhands.core.messages import Dataset, Span, Version


class Partitioned(msgspec.Struct, frozen=True, tag=True):
    """The script of this worker reads this data set."""

    dataset: Dataset


class Began(msgspec.Struct, frozen=True, tag=True):
    """This worker takes part, with the state of a version that it had from others, or of the start."""

    version: Version


class Adopted(msgspec.Struct, frozen=True, tag=True):
    """This worker holds a version: since when (Unix seconds), its digest, and the samples that it commits.

    So many members `contributed` to it, and of so many the contribution weighs something: `combined`.
    """

    at: float
    version: Version
    digest: str
    spans: tuple[Span, ...]
    contributed: int
    combined: int


class Concluded(msgspec.Struct, frozen=True, tag=True):
    """This worker has left in order; the version it held last is its result."""


Testimony = Partitioned | Began | Adopted | Concluded

Testimonies = Mapping[int, Sequence[Testimony]]
"""By process id, each in the order in which they were written."""


@dataclass(frozen=True)
class Account:
    """Samples `committed`, of a `total`; those in no version are `lost`, those in two are `twice`.

    `unwitnessed`: versions that nobody says to have held. `apart`: versions of which workers say different
    things, though no bit was turned over since all agreed. `shown`: flipped bits that made a digest differ,
    for `longest` versions in a row at most. `results`: with how many different versions, or digests of one,
    workers have ended; 0 if none has.
    """

    total: int
    committed: int
    lost: int
    twice: int
    versions: int
    unwitnessed: int
    apart: int
    shown: int
    longest: int
    results: int

    @property
    def equal(self) -> bool:
        """Of every version all said the same, and all ended with the same bits."""
        return not self.apart and self.results <= 1


def account(testimonies: Testimonies, versions: Iterable[Version], flips: Sequence[float]) -> Account:
    """What the processes say of the versions that stand.

    `flips`: when bits were turned over on purpose. Until the next version that all agree on they excuse a
    member that differs, as they do whoever healed from it meanwhile.
    """
    told = [testimony for each in testimonies.values() for testimony in each]
    held: dict[Version, list[Adopted]] = {}
    for testimony in told:
        if isinstance(testimony, Adopted):
            held.setdefault(testimony.version, []).append(testimony)
    standing = sorted(versions)
    unwitnessed = apart = longest = 0
    read, agreed, row, shown = Counter[tuple[int, int]](), 0.0, 0, set[float]()
    seen: dict[tuple[int, int], Intervals] = {}
    for version in standing:
        witnesses = held.get(version, [])
        if not witnesses:
            unwitnessed += 1
            continue
        spans, *others = sorted({witness.spans for witness in witnesses})
        for span in spans:
            read[span.dataset, span.epoch] += len(span)
            seen.setdefault((span.dataset, span.epoch), Intervals()).add(span.start, span.stop)
        if not others and len({witness.digest for witness in witnesses}) == 1:
            agreed, row = min(witness.at for witness in witnesses), 0
            continue
        row += 1
        longest = max(longest, row)
        excuses = {flip for flip in flips if agreed <= flip <= max(witness.at for witness in witnesses)}
        shown |= excuses
        apart += bool(others) or not excuses
    sets = {t.dataset.index: t.dataset for t in told if isinstance(t, Partitioned)}
    total = sum(dataset.length * dataset.epochs for dataset in sets.values())
    committed = sum(intervals.total for intervals in seen.values())
    return Account(
        total=total,
        committed=committed,
        lost=total - committed,
        twice=read.total() - committed,
        versions=len(standing),
        unwitnessed=unwitnessed,
        apart=apart,
        shown=len(shown),
        longest=longest,
        results=_results(each for each in testimonies.values() if Concluded() in each),
    )


def _results(ended: Iterable[Sequence[Testimony]]) -> int:
    """With how many different models these have ended; of a state from others nobody says a digest."""
    last = [[t for t in told if isinstance(t, Began | Adopted)][-1:] for told in ended]
    versions = {held.version for (held,) in filter(None, last)}
    digests = {held.digest for (held,) in filter(None, last) if isinstance(held, Adopted)}
    return max(len(versions), len(digests))
