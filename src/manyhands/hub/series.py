"""Series for a picture: thinned, joined, and where the faults fall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

X = TypeVar("X", int, float)
Series = tuple[list[float], list[float]]


def thin(xs: Sequence[X], ys: Sequence[float], most: int = 2000) -> tuple[list[X], list[float]]:
    """At most `most` points: of each stretch the lowest and the highest, and both ends."""
    if len(xs) <= most:
        return list(xs), list(ys)
    buckets = (most - 2) // 2
    kept = {0, len(xs) - 1}
    for bucket in range(buckets):
        stretch = range(bucket * len(xs) // buckets, (bucket + 1) * len(xs) // buckets)
        kept.add(min(stretch, key=ys.__getitem__))
        kept.add(max(stretch, key=ys.__getitem__))
    return [xs[i] for i in sorted(kept)], [ys[i] for i in sorted(kept)]


def align(*series: Series) -> tuple[list[float], *tuple[list[float | None], ...]]:
    """All series on one axis, each holding its value until its next point; None before its first."""
    xs = sorted({x for each in series for x in each[0]})
    return xs, *(_held(each, xs) for each in series)


def _held(series: Series, xs: Sequence[float]) -> list[float | None]:
    points = dict(zip(*series, strict=True))
    value: float | None = None
    found: list[float | None] = []
    for x in xs:
        value = points.get(x, value)
        found.append(value)
    return found


def rising(values: Sequence[float]) -> list[float]:
    """A counter as it would be had nobody who counts been restarted: it never falls."""
    total, before = 0.0, 0.0
    found: list[float] = []
    for value in values:
        total += value - before if value >= before else 0.0
        before = value
        found.append(total)
    return found
