"""How often what was learned is shared, and how long a round waits for those who are slow."""

from __future__ import annotations

from dataclasses import dataclass

from manyhands.errors import StrategyError


@dataclass(frozen=True)
class Seconds:
    """A time from one version to the next round, of as many local steps as a worker takes meanwhile."""

    seconds: float

    def __post_init__(self) -> None:
        _check("seconds", self.seconds)

    def __repr__(self) -> str:
        return f"seconds({self.seconds:g})"


def seconds(length: float) -> Seconds:
    """For `every=`: each worker takes as many local steps as it can in so many seconds, one at least.

    It weighs by the samples that it learned from, and begins no step that would end, as the one before did,
    after the time: so a slow worker waits for its fast peers and not they for it. Raises `StrategyError`.
    """
    return Seconds(length)


@dataclass(frozen=True)
class All:
    """A round closes when every member of the view has proposed."""

    def __repr__(self) -> str:
        return "All()"


ALL = All()


@dataclass(frozen=True)
class Deadline:
    """A round waits at most so many seconds, from its first proposal on, for who is in a local step.

    That member contributes nothing to the version. What the others learned comes to it after its step, under
    what it has learned itself, which goes with its next contribution: nothing is lost. It may miss one
    version so, not two in one step: the second waits for it. Raises `StrategyError`.
    """

    seconds: float

    def __post_init__(self) -> None:
        _check("Deadline", self.seconds)

    def __repr__(self) -> str:
        return f"Deadline({self.seconds:g})"


def _check(name: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):  # type: ignore[operator]
        raise StrategyError(f"{name}({value!r}) must be a number of seconds above 0")
