"""What a simulated run is like, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from manyhands.core.messages import Version


class Violation(AssertionError):
    """An invariant broke; the message has the seed and the last events."""


@dataclass(frozen=True)
class Plan:
    """`length`: samples of one epoch; `faults`: how many, within `seconds`.

    `keeps`: how many versions lie between two checkpoints, 0 for none; `hosts`: on how many the workers are,
    0 for one each; `remembers`: how many incarnations that are gone a hub does; `recalls`: of how many
    versions a worker can tell a hub that has not heard of them. Chances: `loss`, `twice` and `late` for a
    message between peers, `rejects` for a contribution with a NaN, `abstains` for a worker that is in a step
    when others have proposed. Scripts raise at the samples that are `bad`.
    """

    workers: int
    segments: int
    length: int
    epochs: int
    batch: int
    every: int
    shares_buffer: bool
    faults: int
    seconds: float = 6.0
    loss: float = 0.03
    twice: float = 0.03
    late: float = 0.0
    rejects: float = 0.0
    hosts: int = 0
    keeps: int = 0
    remembers: int = 32
    recalls: int = 1000
    abstains: float = 0.0
    bad: tuple[int, ...] = ()
    order: Literal["dynamic", "static"] = "dynamic"

    @classmethod
    def draw(cls, random: Random) -> Plan:
        """A small run."""
        plan = cls(
            workers=random.randint(2, 5),
            segments=random.randint(1, 3),
            length=random.randint(12, 60),
            epochs=random.randint(1, 2),
            batch=random.randint(1, 4),
            every=random.randint(1, 3),
            shares_buffer=random.random() < 0.5,
            faults=random.randint(0, 6),
            loss=random.choice((0.0, 0.03, 0.1)),
            twice=random.choice((0.0, 0.05)),
            late=random.choice((0.0, 0.0, 0.02)),
            rejects=random.choice((0.0, 0.0, 0.1)),
            order=random.choice(("dynamic", "dynamic", "static")),
            hosts=random.randint(0, 3),
            keeps=random.choice((0, 0, 1, 5)),
            remembers=random.choice((0, 1, 32)),
            abstains=random.choice((0.0, 0.0, 0.2)),
            recalls=random.choice((1000, 1000, 1)),
        )
        most = random.choice((0, 0, 0, 0, 1, 2)) if 2 * plan.batch <= plan.length // 4 else 0
        return replace(plan, bad=tuple(random.sample(range(plan.length), most)))


@dataclass(frozen=True)
class Result:
    """How a run ended.

    `kind`: "finished", "lost" where all who held the newest version have died, or "stopped" where all of them
    were told to end.
    """

    kind: str
    version: Version
    seconds: float
    events: int
    views: int
