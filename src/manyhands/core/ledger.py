"""Which samples are free, leased (to whom) or committed (by which version): exactly once (I3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from manyhands.core.intervals import Intervals
from manyhands.core.messages import Asked, Contribution, Dataset, SavedHolding, Span, Version
from manyhands.errors import DataError, ProtocolError


@dataclass(frozen=True)
class Progress:
    """Where one data set stands; samples. `twice` counts samples committed more than once: always 0."""

    dataset: int
    length: int
    epochs: int
    epoch: int
    committed: int
    leased: int
    free: int
    total_committed: int
    twice: int


@dataclass
class Pass:
    """One epoch over one data set."""

    free: Intervals
    leases: dict[str, Intervals] = field(default_factory=dict)
    committed: Intervals = field(default_factory=Intervals)

    def release(self, incarnation: str) -> None:
        self.free.update(self.leases.pop(incarnation, Intervals()))


class SavedPass(msgspec.Struct, frozen=True):
    dataset: int
    epoch: int
    free: list[tuple[int, int]]
    leases: dict[str, list[tuple[int, int]]]
    committed: list[tuple[int, int]]


class SavedLedger(msgspec.Struct, frozen=True):
    """A ledger as plain values, for the journal."""

    datasets: tuple[Dataset, ...]
    passes: tuple[SavedPass, ...]
    completed: dict[int, int]
    twice: dict[int, int]
    tentative: tuple[tuple[Version, tuple[Contribution, ...]], ...]


class Ledger:
    """Blocks are leased, and committed with the version that holds what was learned from them.

    A version stays tentative, and can be undone, until every member holds it.
    """

    def __init__(self) -> None:
        self.datasets: dict[int, Dataset] = {}
        self._passes: dict[tuple[int, int], Pass] = {}
        self._completed: dict[int, int] = {}
        self._twice: dict[int, int] = {}
        self._tentative: dict[Version, tuple[Contribution, ...]] = {}

    def declare(self, dataset: Dataset) -> None:
        """A script partitions a data set; raises DataError where it is not the one others have."""
        if min(dataset.length, dataset.batch_size, dataset.epochs) < 1:
            raise DataError(
                f"data set {dataset.index} has length {dataset.length}, batch_size {dataset.batch_size} and "
                f"epochs {dataset.epochs}; each must be at least 1"
            )
        known = self.datasets.setdefault(dataset.index, dataset)
        for name in dataset.__struct_fields__:
            ours, theirs = getattr(dataset, name), getattr(known, name)
            if ours != theirs:
                raise DataError(
                    f"data set {dataset.index} has {name} {ours!r} here and {theirs!r} on the other workers; "
                    f"every worker must call partition with the same data and the same arguments"
                )
        self._completed.setdefault(dataset.index, 0)
        self._twice.setdefault(dataset.index, 0)

    def epoch(self, dataset: int) -> int:
        """The epoch that is being read: the first that is not wholly committed."""
        return self._completed[dataset]

    @property
    def done(self) -> bool:
        """Every epoch of every data set has been committed."""
        return bool(self.datasets) and all(self.epoch(d.index) >= d.epochs for d in self.datasets.values())

    def grant(
        self, incarnation: str, asked: Asked, *, rank: int, size: int, part: float | None = None
    ) -> tuple[Span, ...]:
        """Lease about as many positions as a member asks for; () where none is for it just now.

        `part`: what it reads of all that the pool does in a time, its fair one where that is not known.
        Grants are half of what it would read of the rest, so they shrink towards the end of an epoch, and
        who has more queued than all of that gets nothing: nobody sits on data that others could read
        (weighted factoring, Hummel et al. 1996, doi:10.1145/237502.237576). With order "static", batch k
        belongs to rank k mod size.
        """
        dataset, epoch = asked.dataset, asked.epoch
        spec = self.datasets.get(dataset)
        if spec is None or epoch != self.epoch(dataset) or epoch >= spec.epochs:
            return ()
        this = self._pass(dataset, epoch)
        batch = spec.batch_size
        rest = this.free.total * (1 / size if part is None else part)
        share = max(batch, int(min(asked.samples, rest / 2)) // batch * batch)
        if spec.order == "static":
            pairs = self._own_batches(this.free, batch, share, rank, size)
            this.free.difference_update(pairs)
        else:
            pairs = this.free.pop_first(share) if asked.queued <= rest or not asked.queued else []
        if not pairs:
            return ()
        this.leases.setdefault(incarnation, Intervals()).update(pairs)
        return tuple(Span(dataset, epoch, a, b) for a, b in pairs)

    @staticmethod
    def _own_batches(
        free: Intervals, batch: int, samples: int, rank: int, size: int
    ) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for start, stop in free:
            first = start // batch
            first += (rank - first) % size
            for k in range(first, -(-stop // batch), size):
                if samples <= 0:
                    return found
                pair = (max(start, k * batch), min(stop, (k + 1) * batch))
                found.append(pair)
                samples -= pair[1] - pair[0]
        return found

    def commit(self, version: Version, contributions: tuple[Contribution, ...]) -> None:
        """A version was adopted: what its contributions read is committed. Once for each version."""
        if version in self._tentative:
            return
        for span in (span for contribution in contributions for span in contribution.spans):
            spec = self.datasets.get(span.dataset)
            if spec is None or not 0 <= span.start < span.stop <= spec.length or span.epoch >= spec.epochs:
                raise ProtocolError(f"version {version} commits {span}, which is no part of a known data set")
        self._tentative[version] = contributions
        for contribution in contributions:
            for span in contribution.spans:
                this = self._pass(span.dataset, span.epoch)
                for leased in this.leases.values():
                    leased.remove(span.start, span.stop)
                this.free.remove(span.start, span.stop)
                new = this.committed.add(span.start, span.stop)
                self._twice[span.dataset] += len(span) - new
        for index, spec in self.datasets.items():
            this = self._pass(index, self.epoch(index))
            if this.committed.total == spec.length:
                self._completed[index] += 1

    def undo(self, version: Version, holders: Iterable[str]) -> None:
        """Nobody who lives holds this version: its samples return to the living contributors, or are free."""
        alive = set(holders)
        for contribution in self._tentative.pop(version, ()):
            for span in contribution.spans:
                this = self._pass(span.dataset, span.epoch)
                this.committed.remove(span.start, span.stop)
                home = (
                    this.leases.setdefault(contribution.incarnation, Intervals())
                    if contribution.incarnation in alive
                    else this.free
                )
                home.add(span.start, span.stop)
                self._completed[span.dataset] = min(self._completed[span.dataset], span.epoch)

    def settle(self, number: int) -> None:
        """Every member holds version `number`: what it and the earlier ones committed is final."""
        if all(version.number > number for version in self._tentative):
            return
        self._tentative = {v: c for v, c in self._tentative.items() if v.number > number}
        open_epochs = {(s.dataset, s.epoch) for cs in self._tentative.values() for c in cs for s in c.spans}
        for dataset, epoch in [*self._passes]:
            if epoch < self._completed[dataset] and (dataset, epoch) not in open_epochs:
                del self._passes[dataset, epoch]

    def tentative(self, after: int) -> list[Version]:
        """Versions above this number that can still be undone, newest first."""
        return sorted((v for v in self._tentative if v.number > after), reverse=True)

    def knows(self, version: Version) -> bool:
        """It was committed here, and can still be undone."""
        return version in self._tentative

    def release(self, incarnation: str) -> None:
        """This incarnation is gone: what it had leased is free."""
        for this in self._passes.values():
            this.release(incarnation)

    def hold(self, incarnation: str, spans: Iterable[Span]) -> None:
        """The worker says what it holds: exactly that is leased to it, less what is committed."""
        self.release(incarnation)
        for span in spans:
            if span.dataset not in self.datasets or span.epoch < self._completed[span.dataset]:
                continue
            this = self._pass(span.dataset, span.epoch)
            pairs = this.free.overlap(span.start, span.stop)
            this.free.difference_update(pairs)
            this.leases.setdefault(incarnation, Intervals()).update(pairs)

    def restore(self, datasets: Iterable[Dataset], holdings: Iterable[SavedHolding]) -> None:
        """Exactly what a checkpoint has committed is committed, and nothing is leased."""
        self.datasets |= {dataset.index: dataset for dataset in datasets}
        self._passes, self._tentative = {}, {}
        self._completed = dict.fromkeys(self.datasets, 0)
        self._twice = dict.fromkeys(self.datasets, 0)
        for held in holdings:
            self._completed[held.dataset] = held.epoch
            if held.committed:
                this = self._pass(held.dataset, held.epoch)
                this.committed = Intervals(held.committed)
                this.free.difference_update(this.committed)

    def progress(self, dataset: int) -> Progress:
        """Where a data set stands."""
        spec = self.datasets[dataset]
        epoch = min(self.epoch(dataset), spec.epochs - 1)
        this = self._passes.get((dataset, epoch))
        finished = self.epoch(dataset) >= spec.epochs
        committed = spec.length if finished else this.committed.total if this else 0
        done = self.epoch(dataset) * spec.length + (0 if finished else committed)
        leased = sum(lease.total for lease in this.leases.values()) if this else 0
        return Progress(
            dataset=dataset,
            length=spec.length,
            epochs=spec.epochs,
            epoch=epoch,
            committed=committed,
            leased=leased,
            free=spec.length - committed - leased,
            total_committed=done,
            twice=self._twice[dataset],
        )

    def leases(self, dataset: int) -> dict[str, list[tuple[int, int]]]:
        """Who holds which positions of the current epoch."""
        this = self._passes.get((dataset, self.epoch(dataset)))
        return {who: lease.pairs() for who, lease in this.leases.items() if lease} if this else {}

    def save(self) -> SavedLedger:
        return SavedLedger(
            datasets=tuple(self.datasets.values()),
            passes=tuple(
                SavedPass(
                    dataset,
                    epoch,
                    this.free.pairs(),
                    {who: lease.pairs() for who, lease in this.leases.items()},
                    this.committed.pairs(),
                )
                for (dataset, epoch), this in self._passes.items()
            ),
            completed=self._completed,
            twice=self._twice,
            tentative=tuple(self._tentative.items()),
        )

    @classmethod
    def load(cls, saved: SavedLedger) -> Ledger:
        ledger = cls()
        ledger.datasets = {dataset.index: dataset for dataset in saved.datasets}
        ledger._completed, ledger._twice = dict(saved.completed), dict(saved.twice)
        ledger._tentative = dict(saved.tentative)
        for this in saved.passes:
            ledger._passes[this.dataset, this.epoch] = Pass(
                Intervals(this.free),
                {who: Intervals(pairs) for who, pairs in this.leases.items()},
                Intervals(this.committed),
            )
        return ledger

    def _pass(self, dataset: int, epoch: int) -> Pass:
        key = (dataset, epoch)
        if key not in self._passes:
            self._passes[key] = Pass(Intervals([(0, self.datasets[dataset].length)]))
        return self._passes[key]
