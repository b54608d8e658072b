"""A pool of one: the same calls, with no hub, no socket and nothing exchanged."""

from __future__ import annotations

import logging

from manyhands.core.holding import Holding
from manyhands.core.messages import Contribution, Dataset, Span
from manyhands.errors import ProtocolError
from manyhands.sharing.strategy import Strategy
from manyhands.worker.batches import Ended, Idle, cut
from manyhands.worker.driving import Driver, Outcome
from manyhands.worker.progress import Progress

log = logging.getLogger("manyhands.worker")


class Alone:
    """Stands where `Session` stands in a larger pool; a batch is committed when the next one is taken."""

    alone = True
    rank = 0
    size = 1
    view = 0
    hurry = over = False

    def __init__(self) -> None:
        self.progress = Progress()
        self.version = 0

    def declare(self, dataset: Dataset) -> None:
        """The script partitions a data set."""
        self.progress.declare(dataset)

    def share(self, driver: Driver, strategy: Strategy) -> None:  # noqa: ARG002
        """The script shares a model."""
        driver.attach(self)

    def take(self, dataset: int, samples: int) -> tuple[Span, ...] | Idle | Ended:
        """The spans of the next batch."""
        holding = self.progress.holdings[dataset]
        self._commit(holding)
        if self.progress.stopped or holding.done:
            return Ended(self.progress.stopped)
        if not holding.queue:
            holding.leased([Span(dataset, holding.epoch, 0, holding.dataset.length)])
        batch, _ = cut(holding.peek(samples), samples)
        return holding.take(sum(len(span) for span in batch))

    def _commit(self, holding: Holding) -> None:
        self.version += 1
        holding.commit([Contribution("", 1.0, holding.propose())])
        self.progress.measured(self.version, self.progress.logged())
        for doubt in self.progress.doubts():
            log.warning(doubt)

    def peek(self, dataset: int, samples: int) -> tuple[Span, ...]:
        """What `take` would give next."""
        return self.progress.holdings[dataset].peek(samples)

    def put_down(self, dataset: int, *, unloaded: tuple[Span, ...] = ()) -> None:
        """Nothing is weighed."""

    def committed(self, dataset: int) -> int:
        """Samples committed over all epochs."""
        return self.progress.holdings[dataset].total_committed

    def conclude(self, driver: Driver) -> None:
        """Nothing of it is anybody else's."""

    def leave(self, *, finished: bool, why: str, told: bool = False, raised: bool = False) -> None:
        """There is nobody to tell."""

    def learned(self, *, earlier: bool = False) -> None:
        """All that is read counts."""

    def problem(self, segment: int) -> str:  # noqa: ARG002
        raise self._never("problem")

    def ready(self, segment: int) -> None:  # noqa: ARG002
        raise self._never("ready")

    def missed(self, *, claim: bool = False, wait: bool = True) -> Outcome | None:  # noqa: ARG002
        raise self._never("missed")

    def propose(self, present: bytes, rejected: str = "") -> None:  # noqa: ARG002
        raise self._never("propose")

    def outcome(self, *, wait: bool = True) -> Outcome | None:  # noqa: ARG002
        raise self._never("outcome")

    def finish(self, present: bytes, rejected: str = "") -> Outcome:  # noqa: ARG002
        raise self._never("finish")

    def adopted(self) -> None:
        raise self._never("adopted")

    def resign(self, why: str) -> None:  # noqa: ARG002
        raise self._never("resign")

    def settled(self) -> None:
        raise self._never("settled")

    def heal(self) -> None:
        raise self._never("heal")

    @staticmethod
    def _never(what: str) -> ProtocolError:
        return ProtocolError(f"a driver called {what}() in a pool of one, where there are no rounds")
