"""A pool of one: the same calls, with no hub, no socket and nothing exchanged."""

from __future__ import annotations

from manyhands.core.holding import Holding
from manyhands.core.messages import Contribution, Dataset, Span
from manyhands.errors import ProtocolError
from manyhands.worker.batches import Ended, Idle, cut
from manyhands.worker.driving import Driver, Outcome
from manyhands.worker.stopping import StopRule


class Alone:
    """Stands where `Session` stands in a larger pool; a batch is committed when the next one is taken."""

    alone = True
    size = 1
    hurry = False
    position = 0

    def __init__(self) -> None:
        self.holdings: dict[int, Holding] = {}
        self.rules: list[StopRule] = []
        self.metrics: dict[str, tuple[float, float]] = {}
        self.newest: dict[str, float] = {}
        self.version = 0

    def declare(self, dataset: Dataset) -> None:
        """The script partitions a data set."""
        self.holdings[dataset.index] = Holding(dataset)

    def share(self, driver: Driver, strategy: str) -> None:  # noqa: ARG002
        """The script shares a model."""
        driver.attach(self)

    def take(self, dataset: int, samples: int) -> tuple[Span, ...] | Idle | Ended:
        """The spans of the next batch."""
        holding = self.holdings[dataset]
        self._commit(holding)
        reason = next((rule.reason for rule in self.rules if rule.reason), "")
        if reason or holding.done:
            return Ended(reason)
        if not holding.queue:
            holding.leased([Span(dataset, holding.epoch, 0, holding.dataset.length)])
        batch, _ = cut(holding.peek(samples), samples)
        return holding.take(sum(len(span) for span in batch))

    def _commit(self, holding: Holding) -> None:
        self.version += 1
        holding.commit([Contribution("", 1.0, holding.propose())])
        means = {name: total / weight for name, (total, weight) in self.metrics.items() if weight > 0}
        self.metrics = {}
        self.newest |= means
        for rule in self.rules:
            rule.evaluate(self.version, means)

    def peek(self, dataset: int, samples: int) -> tuple[Span, ...]:
        """What `take` would give next."""
        return self.holdings[dataset].peek(samples)

    def committed(self, dataset: int) -> int:
        """Samples committed over all epochs."""
        return self.holdings[dataset].total_committed

    def leave(self, *, finished: bool, why: str) -> None:
        """There is nobody to tell."""

    def ready(self, segment: int) -> None:  # noqa: ARG002
        raise self._never("ready")

    def finish(self, present: bytes, rejected: str = "") -> Outcome:  # noqa: ARG002
        raise self._never("finish")

    def adopted(self) -> None:
        raise self._never("adopted")

    def settled(self) -> None:
        raise self._never("settled")

    def heal(self) -> None:
        raise self._never("heal")

    @staticmethod
    def _never(what: str) -> ProtocolError:
        return ProtocolError(f"a driver called {what}() in a pool of one, where there are no rounds")
