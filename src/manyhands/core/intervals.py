"""Sets of integers held as sorted, disjoint, non-adjacent half-open intervals.

An epoch of 10⁹ samples with a few hundred holes costs kilobytes; every operation is
O(log k + touched) in the number k of intervals.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Intervals:
    """A mutable set of integers; `total` counts its elements."""

    __slots__ = ("_starts", "_stops", "total")

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.total = 0
        for start, stop in pairs:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> int:
        """Unite with [start, stop); returns how many elements are new."""
        if start >= stop:
            return 0
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        old = 0
        if first < last:
            old = sum(self._stops[i] - self._starts[i] for i in range(first, last))
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]
        self.total += stop - start - old
        return stop - start - old

    def remove(self, start: int, stop: int) -> int:
        """Take [start, stop) out; returns how many elements were there."""
        if start >= stop:
            return 0
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        if first >= last:
            return 0
        old = sum(self._stops[i] - self._starts[i] for i in range(first, last))
        kept = [
            (a, b)
            for a, b in (
                (self._starts[first], min(start, self._stops[first])),
                (max(stop, self._starts[last - 1]), self._stops[last - 1]),
            )
            if a < b
        ]
        self._starts[first:last] = [a for a, _ in kept]
        self._stops[first:last] = [b for _, b in kept]
        removed = old - sum(b - a for a, b in kept)
        self.total -= removed
        return removed

    def pop_first(self, count: int) -> list[tuple[int, int]]:
        """Take out and return the `count` smallest elements (fewer when there are fewer)."""
        taken: list[tuple[int, int]] = []
        while count > 0 and self._starts:
            start = self._starts[0]
            stop = min(self._stops[0], start + count)
            self.remove(start, stop)
            taken.append((start, stop))
            count -= stop - start
        return taken

    def overlap(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of [start, stop) that are in the set."""
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        return [(max(start, self._starts[i]), min(stop, self._stops[i])) for i in range(first, last)]

    def common(self, other: Intervals) -> Intervals:
        """What is in both."""
        return Intervals(pair for start, stop in other for pair in self.overlap(start, stop))

    def update(self, pairs: Iterable[tuple[int, int]]) -> None:
        for start, stop in pairs:
            self.add(start, stop)

    def difference_update(self, pairs: Iterable[tuple[int, int]]) -> None:
        for start, stop in pairs:
            self.remove(start, stop)

    def pairs(self) -> list[tuple[int, int]]:
        return list(zip(self._starts, self._stops, strict=True))

    def copy(self) -> Intervals:
        return Intervals(self)

    def clear(self) -> None:
        self._starts.clear()
        self._stops.clear()
        self.total = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.pairs())

    def __contains__(self, element: int) -> bool:
        i = bisect_right(self._starts, element) - 1
        return i >= 0 and element < self._stops[i]

    def __len__(self) -> int:
        """How many intervals, not elements."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self.pairs() == other.pairs()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Intervals(" + " ".join(f"[{a},{b})" for a, b in self) + ")"
