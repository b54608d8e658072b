"""When the pool has learned enough: the same decision on every member, from what versions committed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from manyhands.errors import ConfigurationError

LOWER = ("loss", "error", "perplexity")
HIGHER = ("accuracy", "score", "reward", "precision", "recall")
DOUBTFUL = 20  # versions with metrics, and none of them the one waited for


@dataclass
class StopRule:
    """Stops when a metric passes a target, or has not improved for `patience` evaluations.

    An evaluation is a version to which somebody logged the metric; one that is NaN is no improvement.
    `higher` says which way is better; where it is None a target says so, or else the metric's name (`LOWER`
    and `HIGHER`, as words in it). Raises `ConfigurationError` where neither does, or they disagree.
    """

    metric: str
    below: float | None = None
    above: float | None = None
    patience: int | None = None
    min_delta: float = 0.0
    higher: bool | None = None
    best: float | None = None
    since: int = 0
    reason: str = ""
    without: int = 0
    doubted: bool = False

    def __post_init__(self) -> None:
        if self.below is None and self.above is None and self.patience is None:
            raise ConfigurationError(
                f"stop_when({self.metric!r}) has no condition; give below=, above= or patience="
            )
        if self.patience is not None and self.patience < 1:
            raise ConfigurationError(f"stop_when got patience={self.patience}; give at least 1 evaluation")
        self.higher = self._direction()

    def _direction(self) -> bool | None:
        by_target = {way for way, target in ((False, self.below), (True, self.above)) if target is not None}
        if self.higher is not None:
            by_target.add(self.higher)
        if len(by_target) > 1 and self.patience is not None:
            raise ConfigurationError(
                f"stop_when({self.metric!r}) cannot tell which way is better: it got below={self.below}, "
                f"above={self.above} and higher={self.higher}; make one call for each condition"
            )
        if by_target:
            return by_target.pop()
        name = self.metric.lower()
        lower, higher = (any(word in name for word in words) for words in (LOWER, HIGHER))
        if lower == higher:
            raise ConfigurationError(
                f"stop_when({self.metric!r}, patience={self.patience}) cannot tell from the name which way "
                "is better; give higher=True or higher=False"
            )
        return higher

    def evaluate(self, version: int, metrics: dict[str, float]) -> None:
        """A version was committed with these mean metrics."""
        value = metrics.get(self.metric)
        if value is None:
            self.without += bool(metrics)
            return
        if self.reason:
            return
        if self.below is not None and value <= self.below:
            self.reason = f"{self.metric} reached {value:.6g} at version {version} (target {self.below:g})"
        if self.above is not None and value >= self.above:
            self.reason = f"{self.metric} reached {value:.6g} at version {version} (target {self.above:g})"
        if not math.isnan(value) and (self.best is None or self._gain(value, self.best) > self.min_delta):
            self.best, self.since = value, 0
            return
        self.since += 1
        if self.patience is not None and self.since >= self.patience and not self.reason:
            improved = "been a number" if self.best is None else f"improved on {self.best:.6g}"
            self.reason = f"{self.metric} has not {improved} for {self.since} evaluations (version {version})"

    def doubt(self, logged: Iterable[str]) -> str:
        """A warning, once, where versions have had metrics and never the one this rule waits for; else ""."""
        came = self.best is not None or self.since > 0
        if came or self.doubted or self.without < DOUBTFUL:
            return ""
        self.doubted = True
        return (
            f"stop_when({self.metric!r}) has had nothing to go by in {self.without} versions: what is logged "
            f"is called {', '.join(sorted(logged))}; mend the name, unless {self.metric} comes later"
        )

    def _gain(self, value: float, best: float) -> float:
        return value - best if self.higher else best - value
