"""What one worker knows of the data: what it may read, what it has read, what the pool has committed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from manyhands.core.intervals import Intervals
from manyhands.core.messages import Contribution, Dataset, SavedHolding, Span
from manyhands.core.shuffle import Shuffle


class Holding:
    """One data set as one worker sees it, as of the version this worker has applied.

    `to_skip` is leased to this worker to be committed unread. `quarantined` are the samples of which that is
    done, by their own indices, and `skipped` how many it were in all epochs.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.epoch = 0
        self.committed = Intervals()
        self.queue: list[Span] = []
        self.taken: list[Span] = []
        self.proposed: list[Span] = []
        self.to_skip: list[Span] = []
        self.quarantined = Intervals()
        self.skipped = 0
        self._unread = Intervals()

    @property
    def done(self) -> bool:
        """Every epoch has been committed."""
        return self.epoch >= self.dataset.epochs

    @property
    def queued(self) -> int:
        """Samples leased and not yet read."""
        return sum(len(span) for span in self.queue)

    @property
    def total_committed(self) -> int:
        """Samples committed by the whole pool over all epochs."""
        return self.epoch * self.dataset.length + self.committed.total

    def leased(self, spans: Iterable[Span], skipped: Iterable[Span] = ()) -> None:
        self.queue.extend(span for span in spans if span.epoch == self.epoch)
        self.to_skip.extend(span for span in skipped if span.epoch == self.epoch)

    def take(self, samples: int) -> tuple[Span, ...]:
        """Read up to `samples` of what is leased; they belong to the next proposal."""
        taken: list[Span] = []
        while samples > 0 and self.queue:
            span = self.queue.pop(0)
            if len(span) > samples:
                middle = span.start + samples
                self.queue.insert(0, msgspec.structs.replace(span, start=middle))
                span = msgspec.structs.replace(span, stop=middle)
            samples -= len(span)
            taken.append(span)
        self.taken.extend(taken)
        return tuple(taken)

    def peek(self, samples: int) -> tuple[Span, ...]:
        """What `take` would give next."""
        spans: list[Span] = []
        for span in self.queue:
            if samples <= 0:
                break
            stop = min(span.stop, span.start + samples)
            spans.append(msgspec.structs.replace(span, stop=stop))
            samples -= len(spans[-1])
        return tuple(spans)

    def propose(self) -> tuple[Span, ...]:
        """What was read since the last proposal goes into this one (merged where adjacent)."""
        merged = Intervals((span.start, span.stop) for span in self.taken)
        self.proposed = [Span(self.dataset.index, self.epoch, a, b) for a, b in merged]
        self.taken = []
        return tuple(self.proposed)

    def withdraw(self) -> None:
        """The proposal was rejected: its samples count as not yet read."""
        self.queue[:0] = self.proposed
        self.proposed = []

    def commit(self, contributions: Iterable[Contribution]) -> None:
        """A version was applied."""
        for contribution in contributions:
            for span in contribution.spans:
                if self._of_now(span):
                    self.committed.add(span.start, span.stop)
            for span in filter(self._of_now, contribution.skipped):
                self._skip(span)
        self.proposed = []
        if self.committed.total == self.dataset.length:
            self.epoch += 1
            self.committed, self._unread, self.to_skip = Intervals(), Intervals(), []

    def _of_now(self, span: Span) -> bool:
        return span.dataset == self.dataset.index and span.epoch == self.epoch

    def _skip(self, span: Span) -> None:
        self.committed.add(span.start, span.stop)
        self._unread.add(span.start, span.stop)
        self.to_skip = [other for other in self.to_skip if other != span]
        order = Shuffle(self.dataset.length, self.dataset.seed, self.epoch)
        self.quarantined.update((i, i + 1) for i in order.indices(span.start, span.stop).tolist())
        self.skipped += len(span)

    def learned(self, samples: int) -> tuple[Span, ...]:
        """Up to so many samples of this epoch that somebody has learned from; () where nobody has."""
        read = self.committed.copy()
        read.difference_update(self._unread)
        return tuple(Span(self.dataset.index, self.epoch, a, b) for a, b in read.pop_first(samples))

    def held(self) -> tuple[Span, ...]:
        """Leased and uncommitted, read or not."""
        return (*self.proposed, *self.taken, *self.queue, *self.to_skip)

    def reclaim(self) -> None:
        """What was learned from these samples is thrown away: they are to be read again."""
        self.queue[:0] = [*self.proposed, *self.taken]
        self.taken, self.proposed = [], []

    def forget(self) -> None:
        """This incarnation was evicted: whatever it held is somebody else's now."""
        self.queue, self.taken, self.proposed, self.to_skip = [], [], [], []

    def save(self) -> SavedHolding:
        return SavedHolding(
            self.dataset.index, self.epoch, tuple(self.committed), tuple(self.quarantined), self.skipped
        )

    def load(self, saved: SavedHolding) -> None:
        """Take over what a donor knows; what this worker holds stays, less what has been committed."""
        self.epoch = saved.epoch
        self.committed = Intervals(saved.committed)
        held = Intervals((span.start, span.stop) for span in self.queue if span.epoch == self.epoch)
        held.difference_update(self.committed)
        self.queue = [Span(self.dataset.index, self.epoch, a, b) for a, b in held]
        self.quarantined, self.skipped = Intervals(saved.quarantined), saved.skipped
        order = Shuffle(self.dataset.length, self.dataset.seed, self.epoch)
        barred = ((p, p + 1) for a, b in self.quarantined for p in order.positions(a, b).tolist())
        self._unread = self.committed.common(Intervals(barred))
        self.to_skip = [
            span for span in self.to_skip if self._of_now(span) and span.start not in self.committed
        ]
