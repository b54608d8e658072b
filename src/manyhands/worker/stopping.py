"""When the pool has learned enough: the same decision on every member, from what versions committed."""

from __future__ import annotations

from dataclasses import dataclass

from manyhands.errors import ConfigurationError


@dataclass
class StopRule:
    """Stops when a metric passes a target, or has not improved for `patience` evaluations.

    An evaluation is a version to which somebody logged the metric. Smaller is better, unless `above`
    is given.
    """

    metric: str
    below: float | None = None
    above: float | None = None
    patience: int | None = None
    min_delta: float = 0.0
    best: float | None = None
    since: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        if self.below is None and self.above is None and self.patience is None:
            raise ConfigurationError(
                f"stop_when({self.metric!r}) has no condition; give below=, above= or patience="
            )
        if self.patience is not None and self.patience < 1:
            raise ConfigurationError(f"stop_when got patience={self.patience}; give at least 1 evaluation")

    def evaluate(self, version: int, metrics: dict[str, float]) -> None:
        """A version was committed with these mean metrics."""
        value = metrics.get(self.metric)
        if value is None or self.reason:
            return
        if self.below is not None and value <= self.below:
            self.reason = f"{self.metric} reached {value:.6g} at version {version} (target {self.below:g})"
        if self.above is not None and value >= self.above:
            self.reason = f"{self.metric} reached {value:.6g} at version {version} (target {self.above:g})"
        sign = -1.0 if self.above is not None else 1.0
        if self.best is None or sign * (self.best - value) > self.min_delta:
            self.best, self.since = value, 0
            return
        self.since += 1
        if self.patience is not None and self.since >= self.patience and not self.reason:
            self.reason = (
                f"{self.metric} has not improved on {self.best:.6g} for {self.since} evaluations "
                f"(version {version})"
            )
