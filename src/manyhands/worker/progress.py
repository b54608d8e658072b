"""What a worker has read and measured, and what of it the pool has committed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from manyhands.core.holding import Holding, SavedHolding
from manyhands.core.messages import Contribution, Dataset, Span, Version
from manyhands.sharing.tree import Tree
from manyhands.worker.stopping import StopRule


class Progress:
    """Data sets, metrics and stop rules as of the version that this worker holds; survives an eviction.

    `read`: samples read so far. `newest`: the pool's mean of each metric, as of the newest version that
    had it. Not locked: its owner sees to that.
    """

    def __init__(self) -> None:
        self.holdings: dict[int, Holding] = {}
        self.rules: list[StopRule] = []
        self.newest: dict[str, float] = {}
        self.read = 0
        self._logged: dict[str, tuple[float, float]] = {}
        self._weighed: tuple[float, tuple[Span, ...]] | None = None

    @property
    def stopped(self) -> str:
        """Why a stop rule is met; "" while none is."""
        return next((rule.reason for rule in self.rules if rule.reason), "")

    def declare(self, dataset: Dataset) -> None:
        """The script partitions a data set."""
        self.holdings[dataset.index] = Holding(dataset)

    def log(self, metric: str, value: float) -> None:
        """A number for the next contribution."""
        total, weight = self._logged.get(metric, (0.0, 0.0))
        self._logged[metric] = (total + value, weight + 1.0)

    def logged(self) -> dict[str, tuple[float, float]]:
        """Sum and weight of what was logged since the last call, by metric."""
        logged, self._logged = self._logged, {}
        return logged

    def weigh(self) -> float:
        """What this round's contribution counts in samples, fixed at its first segment."""
        if self._weighed is None:
            spans = tuple(span for holding in self.holdings.values() for span in holding.propose())
            weight = float(sum(len(span) for span in spans)) if self.holdings else 1.0
            self._weighed = weight, spans
        return self._weighed[0]

    def propose(self, incarnation: str, present: bytes, rejected: str) -> Contribution:
        """This round's contribution; what it would have counted is to be read again if it is rejected."""
        self.weigh()
        assert self._weighed is not None
        weight, spans = self._weighed
        if rejected:
            weight, spans = 0.0, ()
            for holding in self.holdings.values():
                holding.withdraw()
        return Contribution(incarnation, weight, spans, self.logged(), rejected, present if weight else b"")

    def commit(self, version: Version, contributions: Iterable[Contribution]) -> None:
        """A version was applied, made of these contributions."""
        sums: dict[str, tuple[float, float]] = {}
        for contribution in contributions:
            for name, (total, weight) in contribution.metrics.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + total, before[1] + weight)
        for holding in self.holdings.values():
            holding.commit(contributions)
        self.measured(version.number, sums)
        self._weighed = None

    def measured(self, version: int, sums: Mapping[str, tuple[float, float]]) -> None:
        """A version has these metrics, as sum and weight."""
        means = {name: total / weight for name, (total, weight) in sums.items() if weight > 0}
        self.newest |= means
        for rule in self.rules:
            rule.evaluate(version, means)

    def held(self) -> tuple[Span, ...]:
        """Leased and uncommitted, read or not."""
        return tuple(span for holding in self.holdings.values() for span in holding.held())

    def forget(self) -> None:
        """This incarnation was evicted: whatever it held is somebody else's now."""
        self._weighed = None
        for holding in self.holdings.values():
            holding.forget()

    def capture(self) -> dict[str, Tree]:
        """What a joiner must know of it."""
        saved = [holding.save() for holding in self.holdings.values()]
        return {
            "holdings": [[one.dataset, one.epoch, [list(pair) for pair in one.committed]] for one in saved],
            "rules": [[rule.best, rule.since, rule.reason] for rule in self.rules],
        }

    def install(self, state: Mapping[str, Any]) -> None:
        """Take over what `capture` gave on another worker; what this one has read is to be read again."""
        self._weighed = None
        for holding in self.holdings.values():
            holding.reclaim()
        for dataset, epoch, committed in state["holdings"]:
            if dataset in self.holdings:
                pairs = tuple((start, stop) for start, stop in committed)
                self.holdings[dataset].load(SavedHolding(dataset, epoch, pairs))
        for rule, (best, since, reason) in zip(self.rules, state["rules"], strict=False):
            rule.best, rule.since, rule.reason = best, since, reason
