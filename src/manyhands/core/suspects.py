"""Which positions of an epoch scripts have failed at, how often, and on which workers."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from manyhands.core.intervals import Intervals

FAILURES = 3
"""Of as many starts of workers at the same samples, after which nobody is given them any more."""

Pairs = list[tuple[int, int]]


class SavedSuspects(msgspec.Struct, frozen=True):
    dataset: int
    epoch: int
    counts: list[Pairs]
    on: dict[str, Pairs]
    why: str


class Suspects:
    """Positions of one pass over one data set, as half-open intervals.

    Batches are cut anew whenever positions are leased, so failures are counted by position: what three
    failures have in common has failed three times. `why` is the last error.
    """

    def __init__(
        self, counts: Iterable[Pairs] = (), on: dict[str, Pairs] | None = None, why: str = ""
    ) -> None:
        self.why = why
        self._counts = [Intervals(pairs) for pairs in counts] or [Intervals() for _ in range(FAILURES)]
        self._on = {name: Intervals(pairs) for name, pairs in (on or {}).items()}

    @property
    def positions(self) -> Intervals:
        """All that a script has failed at."""
        return self._counts[0]

    def failed(self, worker: str, pairs: Pairs, why: str) -> int:
        """A start of this worker failed at these; returns how often some of them have by now."""
        self.why = why
        for lower, higher in reversed(list(zip(self._counts, self._counts[1:], strict=False))):
            for start, stop in pairs:
                higher.update(lower.overlap(start, stop))
        self._counts[0].update(pairs)
        self._on.setdefault(worker, Intervals()).update(pairs)
        return sum(any(count.overlap(*pair) for pair in pairs) for count in self._counts)

    def often(self, times: int) -> Intervals:
        """What has failed so many times, or more; at most `FAILURES`."""
        return self._counts[times - 1]

    def likeliest(self, free: Intervals) -> tuple[int, int]:
        """The first half of those that have failed most often: what remains of them comes after it."""
        most = next(count for count in reversed(self._counts) if count.common(free))
        start, stop = most.common(free).pairs()[0]
        return start, start + max(1, (stop - start) // 2)

    def elsewhere(self, free: Intervals, worker: str) -> Intervals:
        """What of the free suspects this worker has not failed at."""
        left = free.copy()
        left.difference_update(self._on.get(worker, ()))
        return left

    def save(self, dataset: int, epoch: int) -> SavedSuspects:
        counts = [count.pairs() for count in self._counts]
        on = {name: found.pairs() for name, found in self._on.items()}
        return SavedSuspects(dataset, epoch, counts, on, self.why)
