"""Leasing data from the hub, some time ahead of the script that reads it."""

from __future__ import annotations

import time
from collections.abc import Callable

from manyhands.core.holding import Holding
from manyhands.core.messages import Asked, Leased, Span, ToHub
from manyhands.worker.batches import Ended, cut
from manyhands.worker.progress import Progress
from manyhands.worker.waiting import Waiting

ASK_AGAIN_SECONDS = 0.05
UNANSWERED_SECONDS = 1.0
LOOK_AROUND_SECONDS = 1.0


class Leasing:
    """What one incarnation asks of the hub for each data set, and when.

    `send` queues a message for the hub; `connected` says whether it hears it.
    """

    def __init__(
        self,
        progress: Progress,
        waiting: Waiting,
        send: Callable[[ToHub], None],
        connected: Callable[[], bool],
    ) -> None:
        self._progress, self._waiting, self._send, self._connected = progress, waiting, send, connected
        self._over = False
        self._asked_at: dict[int, float] = {}
        self._answers: dict[int, Leased] = {}

    def leased(self, answer: Leased) -> None:
        """The hub has answered; under the lock."""
        self._answers[answer.dataset] = answer
        holding = self._progress.holdings[answer.dataset]
        if holding.epoch == answer.epoch:
            holding.leased(answer.spans)

    def end(self) -> None:
        """Nothing will be granted any more; under the lock."""
        self._over = True

    def take(self, dataset: int, samples: int, *, obliging: bool) -> tuple[Span, ...] | Ended | None:
        """The spans of the next batch, on the script's thread; None when there are none to be had just now.

        `obliging`: what others ask for may be done here.
        """
        holding = self._progress.holdings[dataset]
        waiting = self._waiting

        def answered() -> bool:
            return bool(holding.queue) or self._refused(holding) or self._over

        while True:
            with waiting.changed:
                if obliging:
                    waiting.meanwhile()
                if self._progress.stopped or holding.done:
                    return Ended(self._progress.stopped)
                self._ask(holding, samples)
                waiting.wait(answered, LOOK_AROUND_SECONDS, obliging=obliging)
                waiting.check()
                if holding.queue:
                    batch, _ = cut(holding.peek(samples), samples)
                    wanted = sum(len(span) for span in batch)
                    return self._progress.take(dataset, wanted)
                if answered() or not self._connected():
                    return None

    def _ask(self, holding: Holding, samples: int) -> None:
        """Lease ahead: some ten seconds of data, so that the hub may be away for a while."""
        index, now = holding.dataset.index, time.monotonic()
        if holding.queued >= 4 * samples:
            return
        if index in self._asked_at:
            answered = index in self._answers
            pause = ASK_AGAIN_SECONDS if self._refused(holding) else 0.0 if answered else UNANSWERED_SECONDS
            if now - self._asked_at[index] < pause:
                return
        self._asked_at[index] = now
        self._answers.pop(index, None)
        self._send(Asked(index, holding.epoch, 32 * samples))

    def _refused(self, holding: Holding) -> bool:
        """The last answer was that nothing is free, and the epoch it was about has not ended since."""
        answer = self._answers.get(holding.dataset.index)
        return answer is not None and not answer.spans and answer.epoch == holding.epoch
