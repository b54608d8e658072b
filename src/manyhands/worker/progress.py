"""What a worker has read and measured, and what of it the pool has committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from manyhands.core.holding import Holding
from manyhands.core.messages import Contribution, Dataset, SavedHolding, Span, Version
from manyhands.sharing.tree import Tree
from manyhands.worker.stopping import StopRule

OWN = (None, 1)  # of data of the script's own, every batch weighs the same


class Progress:
    """Data sets, metrics and stop rules as of the version that this worker holds; survives an eviction.

    `read`: samples read so far by this incarnation. `applied`: a version has been held, also by an earlier
    one. `newest`: the pool's mean of each metric, as of the newest version that had it. `done_at`: the
    version with which the last sample of the data sets that the pool learns from was committed. Not locked:
    its owner sees to that.

    A contribution weighs what was read, since the one before it, of the data set that the script learned
    from last: what it evaluates meanwhile is committed along, and weighs nothing. Where nothing was read
    since, it weighs as much as the batch last learned from: a script may learn from one more than once, and
    a strategy may share what it learned bit by bit. Nothing learned weighs nothing, and data of the
    script's own weigh 1.
    """

    def __init__(self) -> None:
        self.holdings: dict[int, Holding] = {}
        self.rules: list[StopRule] = []
        self.newest: dict[str, float] = {}
        self.read = 0
        self.applied = False
        self.done_at: int | None = None
        self._logged: dict[str, tuple[float, float]] = {}
        self._weighed: tuple[float, tuple[Span, ...]] | None = None
        self._hands: dict[int, int] = {}  # data sets in whose loops the script is, and samples of the batches
        self._batches: dict[int, tuple[Span, ...]] = {}  # the batches, in hand or not
        self._left: tuple[Span, ...] = ()  # the batch with which the innermost loop was left, since then
        self._last: tuple[int | None, int] | None = None  # data set and samples of what was learned from last
        self._fresh: tuple[int | None, int] | None = None  # the same, while it is in no contribution yet
        self._sources: set[int] = set()  # data sets that somebody has learned from, by what was committed
        # As of the state that was installed, of data that this script has yet to partition:
        self._undeclared: dict[int, tuple[Dataset, SavedHolding]] = {}
        self._missed: list[tuple[Contribution, ...]] = []  # of versions since then
        self._rests = 0
        self._taken: Counter[int] = Counter()  # batches of a data set since the script learned from it last
        self._stride: Counter[int] = Counter()  # the most batches of a data set that it learned from at once

    @property
    def stopped(self) -> str:
        """Why a stop rule is met; "" while none is."""
        return next((rule.reason for rule in self.rules if rule.reason), "")

    def declare(self, dataset: Dataset) -> None:
        """The script partitions a data set; of some the pool may have committed something before."""
        self.holdings[dataset.index] = holding = Holding(dataset)
        if dataset.index in self._undeclared:
            holding.load(self._undeclared.pop(dataset.index)[1])
        for contributions in self._missed:
            holding.commit(contributions)
        self._missed = [missed for missed in self._missed if self._misses(missed)]

    def _misses(self, contributions: Iterable[Contribution]) -> bool:
        """They are of data that the script has yet to partition."""
        return any(
            span.dataset not in self.holdings for c in contributions for span in (*c.spans, *c.skipped)
        )

    def log(self, metric: str, value: float) -> None:
        """A number for the next contribution."""
        total, weight = self._logged.get(metric, (0.0, 0.0))
        self._logged[metric] = (total + value, weight + 1.0)

    def logged(self) -> dict[str, tuple[float, float]]:
        """Sum and weight of what was logged since the last call, by metric."""
        logged, self._logged = self._logged, {}
        return logged

    def take(self, dataset: int, samples: int) -> tuple[Span, ...]:
        """Read up to so many samples of what is leased; they are the batch in hand now."""
        spans = self.holdings[dataset].take(samples)
        self._hold(dataset, sum(len(span) for span in spans))
        self._batches[dataset] = spans
        self.read += sum(len(span) for span in spans)
        return spans

    def rest(self, dataset: int) -> int:
        """There is nothing to read: what the script learns now does not count.

        Returns how often in a row that was so of this data set, and the script learned nothing.
        """
        again = self._in_hand == (dataset, 0)
        self._hold(dataset, 0)
        self._batches[dataset] = ()
        self._rests = self._rests + 1 if again else 1
        return self._rests

    def _hold(self, dataset: int, samples: int) -> None:
        self._hands.pop(dataset, None)
        self._hands[dataset] = samples
        self._taken[dataset] += 1
        self._left = ()

    def put_down(self, dataset: int, *, ended: bool = True, unloaded: tuple[Span, ...] = ()) -> None:
        """The loop over a data set has ended, or was left: the batch in hand is that of the loop around it.

        Where there is none around one that was left, it may have been for the next batch alone. `unloaded` is
        the batch that could not be loaded, and so ended the loop.

        An exception leaves all loops that it passes, from the innermost on, before anybody hears of it.
        """
        if ended:
            self._left = self._batches[dataset] = ()
        else:
            self._left = unloaded or self._left or self._batches.get(dataset, ())
        if ended or len(self._hands) > 1:
            self._hands.pop(dataset, None)

    @property
    def _in_hand(self) -> tuple[int, int] | None:
        """The data set, and the samples that count, of the batch in hand."""
        return next(reversed(self._hands.items()), None)

    @property
    def batch(self) -> tuple[Span, ...]:
        """What the script is at: the batch with which it has just left a loop, or the one in hand."""
        hand = self._in_hand
        return self._left or (self._batches.get(hand[0], ()) if hand is not None else ())

    def learned(self, *, earlier: bool = False) -> None:
        """The script has learned from the batch in hand, or from an `earlier` one, and has not shared all."""
        if not earlier:
            self._rests, self._left = 0, ()
            self._last = self._in_hand or OWN
            dataset, _ = self._last
            if dataset is not None:
                self._stride[dataset] = max(self._stride[dataset], self._taken.pop(dataset, 0))
        self._fresh = self._last

    @property
    def late(self) -> bool:
        """The batch in hand is of a data set all of which has been committed."""
        return self._in_hand is not None and self.holdings[self._in_hand[0]].done

    def unheard(self) -> tuple[str, ...]:
        """Metrics that have been logged, and are in no version at all so far."""
        return tuple(name for name in self._logged if name not in self.newest)

    def studied(self, dataset: int) -> bool:
        """The pool learns from this data set, and does not only evaluate it."""
        return dataset in self._stride or dataset in self._sources

    def stride(self, dataset: int) -> int:
        """The most batches of this data set that the script has learned from at once."""
        return self._stride[dataset]

    @property
    def pending(self) -> bool:
        """Something that the script learned is in no contribution yet."""
        return self._fresh is not None

    def unshared(self, dataset: int) -> bool:
        """Something learned, or read of a data set that is learned from, or to be skipped, is unshared."""
        holding = self.holdings[dataset]
        return self.pending or bool(holding.to_skip) or (self.studied(dataset) and bool(holding.taken))

    def weigh(self) -> float:
        """What this round's contribution counts in samples, fixed at its first segment."""
        if self._weighed is None:
            spans = tuple(span for holding in self.holdings.values() for span in holding.propose())
            self._weighed = self._weight(spans), spans
        return self._weighed[0]

    def _weight(self, spans: tuple[Span, ...]) -> float:
        if self._fresh is None:
            return 0.0
        source, samples = self._fresh
        return float(sum(len(span) for span in spans if span.dataset == source) or samples)

    def propose(self, incarnation: str, present: bytes, rejected: str) -> Contribution:
        """This round's contribution; what it would have counted is to be read again if it is rejected."""
        self.weigh()
        assert self._weighed is not None
        weight, spans = self._weighed
        source = self._fresh[0] if self._fresh is not None else None
        self._fresh = None  # what is learned from here on goes with the next one
        if rejected:
            weight, spans = 0.0, ()
            self._drop()
            for holding in self.holdings.values():
                holding.withdraw()
        return Contribution(
            incarnation,
            weight,
            spans,
            self.logged(),
            rejected,
            present if weight else b"",
            self.read,
            source if weight else None,
            skipped=tuple(span for holding in self.holdings.values() for span in holding.to_skip),
        )

    def _drop(self) -> None:
        """What was learned from the batches in hand is lost: they count no more."""
        self._hands = dict.fromkeys(self._hands, 0)
        self._last = self._fresh = None

    def commit(self, version: Version, contributions: Iterable[Contribution]) -> None:
        """A version was applied, made of these contributions."""
        self.applied = True
        sums: dict[str, tuple[float, float]] = {}
        for contribution in contributions:
            if contribution.rejected:
                continue
            for name, (total, weight) in contribution.metrics.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + total, before[1] + weight)
        contributions = tuple(contributions)
        for holding in self.holdings.values():
            holding.commit(contributions)
        if self._misses(contributions):
            self._missed.append(contributions)
        self._sources |= {c.source for c in contributions if c.source is not None}
        if not self._sources or not all(self._done(dataset) for dataset in self._sources):
            self.done_at = None
        elif self.done_at is None:
            self.done_at = version.number
        self.measured(version.number, sums)
        self._weighed = None

    def _done(self, dataset: int) -> bool:
        """All of it is committed; not so where the script of this worker has yet to partition it."""
        return dataset in self.holdings and self.holdings[dataset].done

    def measured(self, version: int, sums: Mapping[str, tuple[float, float]]) -> None:
        """A version has these metrics, as sum and weight."""
        means = {name: total / weight for name, (total, weight) in sums.items() if weight > 0}
        self.newest |= means
        for rule in self.rules:
            rule.evaluate(version, means)

    def doubts(self) -> list[str]:
        """Warnings of stop rules that wait for a metric nobody logs, each once."""
        return [doubt for rule in self.rules if (doubt := rule.doubt(self.newest))]

    def held(self) -> tuple[Span, ...]:
        """Leased and uncommitted, read or not."""
        return tuple(span for holding in self.holdings.values() for span in holding.held())

    def forget(self) -> None:
        """This incarnation was evicted: whatever it held is somebody else's now."""
        self.read, self._weighed = 0, None
        self._drop()
        for holding in self.holdings.values():
            holding.forget()

    def saved(self) -> tuple[SavedHolding, ...]:
        """What the pool has committed of each data set."""
        undeclared = (saved for _, saved in self._undeclared.values())
        return (*(holding.save() for holding in self.holdings.values()), *undeclared)

    def datasets(self) -> tuple[Dataset, ...]:
        """Of which `saved` tells."""
        undeclared = (dataset for dataset, _ in self._undeclared.values())
        return (*(holding.dataset for holding in self.holdings.values()), *undeclared)

    def capture(self) -> dict[str, Tree]:
        """What a joiner must know of it."""
        return {
            "holdings": [
                [one.dataset, one.epoch, _lists(one.committed), _lists(one.quarantined), one.skipped]
                for one in self.saved()
            ],
            "datasets": [list(msgspec.structs.astuple(dataset)) for dataset in self.datasets()],
            "done_at": self.done_at,
            "sources": sorted(self._sources),
            "rules": [[rule.best, rule.since, rule.reason] for rule in self.rules],
        }

    def install(self, state: Mapping[str, Any]) -> None:
        """Take over what `capture` gave on another worker; what this one has read is to be read again."""
        self._weighed, self.done_at, self._sources = None, state["done_at"], set(state["sources"])
        self._drop()
        for holding in self.holdings.values():
            holding.reclaim()
        self._undeclared, self._missed = {}, []
        datasets = {dataset.index: dataset for dataset in (Dataset(*each) for each in state["datasets"])}
        for dataset, epoch, committed, quarantined, skipped in state["holdings"]:
            saved = SavedHolding(dataset, epoch, _pairs(committed), _pairs(quarantined), skipped)
            if dataset in self.holdings:
                self.holdings[dataset].load(saved)
            else:
                self._undeclared[dataset] = datasets[dataset], saved
        for rule, (best, since, reason) in zip(self.rules, state["rules"], strict=False):
            rule.best, rule.since, rule.reason = best, since, reason


def _lists(pairs: Iterable[tuple[int, int]]) -> Tree:
    return [list(pair) for pair in pairs]


def _pairs(lists: Iterable[Iterable[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((start, stop) for start, stop in lists)
