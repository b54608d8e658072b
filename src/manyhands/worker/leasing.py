"""Leasing data from the hub, some time ahead of the script that reads it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from manyhands.core.holding import Holding
from manyhands.core.messages import Asked, Leased, Span, ToHub
from manyhands.worker.batches import Ended, cut
from manyhands.worker.progress import Progress
from manyhands.worker.waiting import REMIND_SECONDS, Waiting

log = logging.getLogger("manyhands.worker")

ASK_AGAIN_SECONDS = 0.05
UNANSWERED_SECONDS = 1.0
BATCHES_AHEAD = 8
SECONDS_AHEAD = 10.0
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
        self._began: float | None = None
        self._taken = 0
        self._asked_at: dict[int, float] = {}
        self._asked: dict[int, Asked] = {}
        self._answers: dict[int, Leased] = {}

    def leased(self, answer: Leased) -> None:
        """The hub has answered; under the lock."""
        self._answers[answer.dataset] = answer
        self._asked.pop(answer.dataset, None)
        holding = self._progress.holdings[answer.dataset]
        if holding.epoch == answer.epoch:
            holding.leased(answer.spans, answer.skipped)

    def repeat(self) -> None:
        """The hub is back, and may not have heard what it has not answered; under the lock."""
        for asked in list(self._asked.values()):
            self._send(asked)

    def end(self) -> None:
        """Nothing will be granted any more; under the lock."""
        self._over = True

    def take(
        self, dataset: int, samples: int, *, obliging: bool, wanted: Callable[[], object]
    ) -> tuple[Span, ...] | Ended | None:
        """The spans of the next batch, on the script's thread; waits for them, and asks again and again.

        None where there are none, and this worker is `wanted` elsewhere (asked for under the lock), or
        out. A data set that is only evaluated ends for this worker when it has read some of it and
        nothing more is to be had. `obliging`: what others ask for may be done here.
        """
        progress, waiting = self._progress, self._waiting
        holding = progress.holdings[dataset]
        began = reminded = time.monotonic()
        with waiting.changed:
            while True:
                if obliging:
                    waiting.meanwhile()
                if progress.stopped or holding.done:
                    return Ended(progress.stopped)
                self._ask(holding, samples)
                self._wait(holding, obliging, wanted)
                waiting.check()
                if holding.queue:
                    batch, _ = cut(holding.peek(samples), samples)
                    count = sum(len(span) for span in batch)
                    self._taken += count
                    return progress.take(dataset, count)
                if self._refused(holding) and holding.taken and not progress.studied(dataset):
                    return Ended()
                if self._over or wanted():
                    return None
                if time.monotonic() - reminded > REMIND_SECONDS * waiting.patience:
                    reminded = time.monotonic()
                    log.warning(self._reminder(holding, reminded - began))

    def _wait(self, holding: Holding, obliging: bool, wanted: Callable[[], object]) -> None:
        """Until there is news, or it is time to ask again; who may get data is not called before it knows."""
        refused = self._refused(holding)

        def news() -> object:
            known = refused or not self._connected()
            return holding.queue or self._over or (wanted() if known else self._refused(holding))

        self._waiting.wait(news, ASK_AGAIN_SECONDS if refused else LOOK_AROUND_SECONDS, obliging=obliging)

    def _reminder(self, holding: Holding, seconds: float) -> str:
        whom = (
            "others hold what is left of it, and the hub gives it back when they are lost"
            if self._connected()
            else "the hub, which gives it out, is away"
        )
        what = f"data set {holding.dataset.index}, epoch {holding.epoch}"
        return f"worker {self._waiting.name} has waited {seconds:.0f} s for {what}: {whom}"

    def _ask(self, holding: Holding, samples: int) -> None:
        """Lease ahead, by the pace so far, so that the hub may be away for a while."""
        index, now = holding.dataset.index, time.monotonic()
        self._began = self._began or now
        pace = self._taken / max(now - self._began, 1.0)
        ahead = max(2 * samples, int(pace * SECONDS_AHEAD)) if pace else BATCHES_AHEAD * samples
        if holding.queued >= ahead // 2:
            return
        if index in self._asked_at:
            answered = index in self._answers
            pause = ASK_AGAIN_SECONDS if self._refused(holding) else 0.0 if answered else UNANSWERED_SECONDS
            if now - self._asked_at[index] < pause:
                return
        self._asked_at[index] = now
        self._answers.pop(index, None)
        self._asked[index] = Asked(index, holding.epoch, ahead, holding.queued, pace)
        self._send(self._asked[index])

    def _refused(self, holding: Holding) -> bool:
        """The last answer was that nothing is free, and the epoch it was about has not ended since."""
        answer = self._answers.get(holding.dataset.index)
        return answer is not None and not answer.spans and answer.epoch == holding.epoch
