"""Which samples are free, leased (to whom) or committed (by which version): exactly once (I3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from manyhands.core.intervals import Intervals
from manyhands.core.messages import Asked, Contribution, Dataset, SavedHolding, Span, Version
from manyhands.core.shuffle import Shuffle
from manyhands.core.suspects import FAILURES, SavedSuspects, Suspects
from manyhands.errors import DataError, ProtocolError

MOST_NAMED = 8
MOST_SUSPECT = 0.25
"""Of the samples of an epoch; where scripts fail at more of them, it is not for the samples."""


@dataclass(frozen=True)
class Progress:
    """Where one data set stands; samples. `twice` counts samples committed more than once: always 0.

    `skipped` ones are quarantined: they count as committed, and nobody has learned from them.
    """

    dataset: int
    length: int
    epochs: int
    epoch: int
    committed: int
    leased: int
    free: int
    total_committed: int
    twice: int
    skipped: int


@dataclass
class Pass:
    """One epoch over one data set. `barred` positions are quarantined; `skipped` those of them committed."""

    free: Intervals
    leases: dict[str, Intervals] = field(default_factory=dict)
    committed: Intervals = field(default_factory=Intervals)
    barred: Intervals = field(default_factory=Intervals)
    skipped: Intervals = field(default_factory=Intervals)

    def release(self, incarnation: str) -> None:
        self.free.update(self.leases.pop(incarnation, Intervals()))


class SavedPass(msgspec.Struct, frozen=True):
    dataset: int
    epoch: int
    free: list[tuple[int, int]]
    leases: dict[str, list[tuple[int, int]]]
    committed: list[tuple[int, int]]
    barred: list[tuple[int, int]] = []
    skipped: list[tuple[int, int]] = []


class Quarantine(msgspec.Struct, frozen=True):
    """Samples that nobody learns from any more, by their own indices, as half-open intervals.

    `why` is the last error; "" where a checkpoint or another hub's workers tell of them.
    """

    dataset: int
    samples: tuple[tuple[int, int], ...]
    why: str

    def __str__(self) -> str:
        """``4 samples (17, 40–42) of data set 0``; the first so many intervals."""
        parts = [str(a) if b - a == 1 else f"{a}–{b - 1}" for a, b in self.samples]
        if sum(b - a for a, b in self.samples) == 1:
            return f"sample {parts[0]} of data set {self.dataset}"
        more = ", …" if len(parts) > MOST_NAMED else ""
        count = sum(b - a for a, b in self.samples)
        return f"{count} samples ({', '.join(parts[:MOST_NAMED])}{more}) of data set {self.dataset}"


class SavedLedger(msgspec.Struct, frozen=True):
    """A ledger as plain values, for the journal."""

    datasets: tuple[Dataset, ...]
    passes: tuple[SavedPass, ...]
    completed: dict[int, int]
    twice: dict[int, int]
    tentative: tuple[tuple[Version, tuple[Contribution, ...]], ...]
    skipped: dict[int, int] = {}
    suspects: tuple[SavedSuspects, ...] = ()
    quarantine: tuple[Quarantine, ...] = ()
    kept: tuple[int, ...] = ()
    undeclared: tuple[SavedHolding, ...] = ()


class Ledger:
    """Blocks are leased, and committed with the version that holds what was learned from them.

    A version stays tentative, and can be undone, until every member holds it. `quarantine` says what is
    leased to nobody for learning, and why: it is settled with a version all the same.
    """

    def __init__(self) -> None:
        self.datasets: dict[int, Dataset] = {}
        self._passes: dict[tuple[int, int], Pass] = {}
        self._completed: dict[int, int] = {}
        self._twice: dict[int, int] = {}
        self._tentative: dict[Version, tuple[Contribution, ...]] = {}
        self._skipped: dict[int, int] = {}
        self._suspects: dict[tuple[int, int], Suspects] = {}
        self._kept: set[int] = set()  # of a checkpoint, and by no worker's word yet: epochs may be more
        self._undeclared: dict[int, SavedHolding] = {}  # told of, and no script has partitioned it here
        self.quarantine: list[Quarantine] = []

    def declare(self, dataset: Dataset) -> None:
        """A script partitions a data set; raises DataError where it is not the one others have."""
        if min(dataset.length, dataset.batch_size, dataset.epochs) < 1:
            raise DataError(
                f"data set {dataset.index} has length {dataset.length}, batch_size {dataset.batch_size} and "
                f"epochs {dataset.epochs}; each must be at least 1"
            )
        known, kept = self.datasets.setdefault(dataset.index, dataset), dataset.index in self._kept
        if kept:
            known = msgspec.structs.replace(known, epochs=dataset.epochs)
        for name in dataset.__struct_fields__:
            ours, theirs = getattr(dataset, name), getattr(known, name)
            if ours != theirs and kept:
                raise DataError(
                    f"data set {dataset.index} has {name} {ours!r} here and {theirs!r} in the checkpoint "
                    f"that this run goes on from; give partition the same data and arguments, but for epochs"
                )
            if ours != theirs:
                raise DataError(
                    f"data set {dataset.index} has {name} {ours!r} here and {theirs!r} on the other workers; "
                    f"every worker must call partition with the same data and the same arguments"
                )
        self.datasets[dataset.index] = dataset
        self._kept.discard(dataset.index)
        self._completed.setdefault(dataset.index, 0)
        self._twice.setdefault(dataset.index, 0)
        self._skipped.setdefault(dataset.index, 0)
        if dataset.index in self._undeclared:
            self._put_back(self._undeclared.pop(dataset.index))

    def epoch(self, dataset: int) -> int:
        """The epoch that is being read: the first that is not wholly committed."""
        return self._completed[dataset]

    @property
    def done(self) -> bool:
        """Every epoch of every data set has been committed, and scripts have said how many those are."""
        if not self.datasets or self._kept or self._undeclared:
            return False
        return all(self.epoch(d.index) >= d.epochs for d in self.datasets.values())

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
        batch, free = spec.batch_size, self._innocent(this, dataset, epoch)
        rest = free.total * (1 / size if part is None else part)
        share = max(batch, int(min(asked.samples, rest / 2)) // batch * batch)
        if spec.order == "static":
            pairs = self._own_batches(free, batch, share, rank, size)
        else:
            pairs = free.copy().pop_first(share) if asked.queued <= rest or not asked.queued else []
        return self._lease(this, incarnation, dataset, epoch, pairs)

    def _innocent(self, this: Pass, dataset: int, epoch: int) -> Intervals:
        """What is free, and no script has failed at."""
        suspects = self._suspects.get((dataset, epoch))
        if suspects is None and not this.barred:
            return this.free
        free = this.free.copy()
        free.difference_update(this.barred)
        free.difference_update(suspects.positions if suspects is not None else ())
        return free

    @staticmethod
    def _lease(
        this: Pass, incarnation: str, dataset: int, epoch: int, pairs: list[tuple[int, int]]
    ) -> tuple[Span, ...]:
        if pairs:
            this.free.difference_update(pairs)
            this.leases.setdefault(incarnation, Intervals()).update(pairs)
        return tuple(Span(dataset, epoch, a, b) for a, b in pairs)

    # --- what scripts fail at ----------------------------------------------------------------------

    def leased_batch(self, incarnation: str, spans: Iterable[Span]) -> tuple[Span, ...]:
        """What of these spans this one has leased, and has not had committed; of a pass at most a batch."""
        return tuple(
            Span(dataset, epoch, *pair)
            for (dataset, epoch), pairs in self._by_pass(spans).items()
            if (this := self._passes.get((dataset, epoch))) is not None
            for pair in this.leases.get(incarnation, Intervals())
            .common(Intervals(pairs))
            .pop_first(self.datasets[dataset].batch_size)
        )

    def failed(self, worker: str, batch: Iterable[Span], why: str) -> int:
        """The script of this worker failed at a batch; returns how often one has at some of it.

        What has failed is leased last, so that all else comes first, and half by half, to find what it is.
        """
        times = 0
        for (dataset, epoch), pairs in self._by_pass(batch).items():
            suspects = self._suspects.setdefault((dataset, epoch), Suspects())
            times = max(times, suspects.failed(worker, pairs, why))
        return times

    def proven(self, batch: Iterable[Span]) -> list[Span]:
        """What of it has failed often enough to be quarantined.

        Nothing where it may be the script that fails.
        """
        found: list[Span] = []
        for (dataset, epoch), pairs in self._by_pass(batch).items():
            if not self.all_fails(dataset, epoch):
                often = self._suspects[dataset, epoch].often(FAILURES)
                found += (Span(dataset, epoch, *part) for pair in pairs for part in often.overlap(*pair))
        return found

    def all_fails(self, dataset: int, epoch: int) -> bool:
        """So much of an epoch has been failed at, or so little learned from, that it may be the script."""
        spec, this = self.datasets[dataset], self._pass(dataset, epoch)
        most = max(spec.batch_size, int(spec.length * MOST_SUSPECT))
        nothing = this.committed.total == this.skipped.total
        return nothing or self._suspects[dataset, epoch].positions.total > most

    def suspect(self, incarnation: str, dataset: int, epoch: int) -> tuple[Span, ...]:
        """What is free and suspect, where this one holds nothing else of the epoch that could be lost."""
        suspects = self._suspects.get((dataset, epoch))
        if suspects is None or epoch != self.epoch(dataset):
            return ()
        this = self._pass(dataset, epoch)
        if self._innocent(this, dataset, epoch) or this.leases.get(incarnation):
            return ()
        free = this.free.common(suspects.positions)
        free.difference_update(this.barred)
        return tuple(Span(dataset, epoch, a, b) for a, b in free)

    def at_risk(self, incarnation: str) -> bool:
        """It has been given something to try that others have failed at."""
        return any(
            this.leases.get(incarnation, Intervals()).common(self._suspects[place].positions)
            for place, this in self._passes.items()
            if place in self._suspects
        )

    def unfailed(self, worker: str, spans: Iterable[Span]) -> tuple[Span, ...]:
        """What of it this worker has not failed at."""
        return tuple(
            Span(dataset, epoch, a, b)
            for (dataset, epoch), pairs in self._by_pass(spans).items()
            for a, b in self._suspects[dataset, epoch].elsewhere(Intervals(pairs), worker)
        )

    def try_again(self, incarnation: str, spans: Iterable[Span]) -> tuple[Span, ...]:
        """Lease half of the likeliest of these suspects, and the rest later: so it is found what fails."""
        ((dataset, epoch), pairs), *_ = self._by_pass(spans).items()
        pair = self._suspects[dataset, epoch].likeliest(Intervals(pairs))
        return self._lease(self._pass(dataset, epoch), incarnation, dataset, epoch, [pair])

    def bar(self, spans: Iterable[Span]) -> list[Quarantine]:
        """Nobody is to learn from these suspects any more, in this epoch and in later ones."""
        return [
            self._bar(dataset, epoch, pairs, self._suspects[dataset, epoch].why)
            for (dataset, epoch), pairs in self._by_pass(spans).items()
        ]

    def _bar(self, dataset: int, epoch: int, pairs: Iterable[tuple[int, int]], why: str) -> Quarantine:
        samples = self.samples(dataset, epoch, pairs)
        for (other, at), this in self._passes.items():
            if other == dataset:
                this.barred.update(self._positions(dataset, at, samples))
        self.quarantine.append(found := Quarantine(dataset, tuple(samples), why))
        return found

    def skip(self, incarnation: str, dataset: int, epoch: int) -> tuple[Span, ...]:
        """Lease what is quarantined and not committed yet, to be committed unread."""
        spec = self.datasets.get(dataset)
        if spec is None or not self.quarantine or not epoch == self.epoch(dataset) < spec.epochs:
            return ()
        this = self._pass(dataset, epoch)
        return self._lease(this, incarnation, dataset, epoch, this.free.common(this.barred).pairs())

    def samples(self, dataset: int, epoch: int, pairs: Iterable[tuple[int, int]]) -> Intervals:
        """The samples at these positions of an epoch, by their own indices."""
        spec = self.datasets[dataset]
        order = Shuffle(spec.length, spec.seed, epoch)
        return Intervals((i, i + 1) for a, b in pairs for i in order.indices(a, b).tolist())

    def _positions(self, dataset: int, epoch: int, samples: Intervals) -> list[tuple[int, int]]:
        spec = self.datasets[dataset]
        order = Shuffle(spec.length, spec.seed, epoch)
        return [(p, p + 1) for a, b in samples for p in order.positions(a, b).tolist()]

    def _by_pass(self, spans: Iterable[Span]) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """By data set and epoch; without what is no part of a known one."""
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for span in spans:
            spec = self.datasets.get(span.dataset)
            if (
                spec is not None
                and 0 <= span.start < span.stop <= spec.length
                and 0 <= span.epoch < spec.epochs
            ):
                found.setdefault((span.dataset, span.epoch), []).append((span.start, span.stop))
        return found

    # --- versions ----------------------------------------------------------------------------------

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

    def commit(self, version: Version, contributions: tuple[Contribution, ...]) -> list[tuple[int, int, int]]:
        """A version was adopted: what its contributions read is committed. Once for each version.

        Returns the epochs that have ended with it: data set, epoch, and how many samples were left out.
        """
        if version in self._tentative:
            return []
        for span in (span for contribution in contributions for span in settled(contribution)):
            spec = self.datasets.get(span.dataset)
            if spec is None or not 0 <= span.start < span.stop <= spec.length or span.epoch >= spec.epochs:
                raise ProtocolError(f"version {version} commits {span}, which is no part of a known data set")
        self._tentative[version] = contributions
        for contribution in contributions:
            for span in settled(contribution):
                this = self._pass(span.dataset, span.epoch)
                for leased in this.leases.values():
                    leased.remove(span.start, span.stop)
                this.free.remove(span.start, span.stop)
                new = this.committed.add(span.start, span.stop)
                self._twice[span.dataset] += len(span) - new
            for span in contribution.skipped:
                this = self._pass(span.dataset, span.epoch)
                self._skipped[span.dataset] += this.skipped.add(span.start, span.stop)
                unknown = Intervals([(span.start, span.stop)])
                unknown.difference_update(this.barred)
                if unknown:  # another hub, which is gone, had it skipped
                    self._bar(span.dataset, span.epoch, unknown, "")
        ended: list[tuple[int, int, int]] = []
        for index, spec in self.datasets.items():
            epoch = self.epoch(index)
            this = self._pass(index, epoch)
            if this.committed.total == spec.length:
                self._completed[index] += 1
                ended.append((index, epoch, this.skipped.total))
        return ended

    def undo(self, version: Version, holders: Iterable[str]) -> None:
        """Nobody who lives holds this version: its samples return to the living contributors, or are free."""
        alive = set(holders)
        for contribution in self._tentative.pop(version, ()):
            for span in settled(contribution):
                this = self._pass(span.dataset, span.epoch)
                this.committed.remove(span.start, span.stop)
                self._skipped[span.dataset] -= this.skipped.remove(span.start, span.stop)
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
        open_epochs = {
            (s.dataset, s.epoch) for cs in self._tentative.values() for c in cs for s in settled(c)
        }
        for dataset, epoch in [*self._passes]:
            if epoch < self._completed[dataset] and (dataset, epoch) not in open_epochs:
                del self._passes[dataset, epoch]
                self._suspects.pop((dataset, epoch), None)

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
        """Exactly what these tell of is committed, and nothing is leased.

        What is told of a data set that no script has partitioned here waits until one does.
        """
        given = {dataset.index: dataset for dataset in datasets}
        self.datasets |= given
        self._kept |= given.keys()
        self._passes, self._tentative, self._undeclared = {}, {}, {}
        self._completed = dict.fromkeys(self.datasets, 0)
        self._twice = dict.fromkeys(self.datasets, 0)
        self._skipped = dict.fromkeys(self.datasets, 0)
        for held in holdings:
            if held.dataset in self.datasets:
                self._put_back(held)
            else:
                self._undeclared[held.dataset] = held

    def _put_back(self, held: SavedHolding) -> None:
        self._completed[held.dataset], self._skipped[held.dataset] = held.epoch, held.skipped
        told = Intervals(held.quarantined)
        for known in self.quarantine:
            told.difference_update(known.samples if known.dataset == held.dataset else ())
        if told:
            self.quarantine.append(Quarantine(held.dataset, tuple(told), ""))
        if held.committed:
            this = self._pass(held.dataset, held.epoch)
            this.committed = Intervals(held.committed)
            this.free.difference_update(this.committed)
            this.skipped = this.committed.common(this.barred)

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
            skipped=self._skipped[dataset],
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
                    this.barred.pairs(),
                    this.skipped.pairs(),
                )
                for (dataset, epoch), this in self._passes.items()
            ),
            completed=self._completed,
            twice=self._twice,
            tentative=tuple(self._tentative.items()),
            skipped=self._skipped,
            suspects=tuple(found.save(*place) for place, found in self._suspects.items()),
            quarantine=tuple(self.quarantine),
            kept=tuple(self._kept),
            undeclared=tuple(self._undeclared.values()),
        )

    def load(self, saved: SavedLedger) -> None:
        """As the journal has it."""
        self.datasets = {dataset.index: dataset for dataset in saved.datasets}
        self._completed, self._twice = dict(saved.completed), dict(saved.twice)
        self._tentative = dict(saved.tentative)
        self._skipped = dict.fromkeys(self.datasets, 0) | saved.skipped
        self._suspects = {(s.dataset, s.epoch): Suspects(s.counts, s.on, s.why) for s in saved.suspects}
        self.quarantine, self._kept = list(saved.quarantine), set(saved.kept)
        self._undeclared = {held.dataset: held for held in saved.undeclared}
        self._passes = {
            (this.dataset, this.epoch): Pass(
                Intervals(this.free),
                {who: Intervals(pairs) for who, pairs in this.leases.items()},
                Intervals(this.committed),
                Intervals(this.barred),
                Intervals(this.skipped),
            )
            for this in saved.passes
        }

    def _pass(self, dataset: int, epoch: int) -> Pass:
        key = (dataset, epoch)
        if key not in self._passes:
            self._passes[key] = this = Pass(Intervals([(0, self.datasets[dataset].length)]))
            for known in self.quarantine:
                if known.dataset == dataset:
                    this.barred.update(self._positions(dataset, epoch, Intervals(known.samples)))
        return self._passes[key]


def settled(contribution: Contribution) -> tuple[Span, ...]:
    """What is committed with it: what was learned from, and what is left out for good."""
    return (*contribution.spans, *contribution.skipped)
