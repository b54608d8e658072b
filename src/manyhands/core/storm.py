"""Which fault, when, and to whom: drawn from a seed, so that the same storm can come again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

KINDS = ("kill", "stop", "slow", "cut", "corrupt", "kill-hub")
"""A worker killed with -9; stopped, and woken; slowed down; its connections broken; a bit of its state turned
over; the hub killed with -9."""


@dataclass(frozen=True)
class Fault:
    """`at` and `seconds` (how long it lasts, where it does): seconds from the storm's beginning.

    `worker`: a number, modulo those that live then.
    """

    at: float
    kind: str
    worker: int
    seconds: float = 0.0


def draw(seed: int, kinds: Sequence[str], every: float, seconds: float, lease: float) -> tuple[Fault, ...]:
    """One fault about `every` so many seconds, for so many `seconds`; each kind equally often.

    Who is stopped sleeps through its lease every other time; who is slowed down is so for as long as it is
    until the next fault.
    """
    random, faults = Random(seed), list[Fault]()
    order: list[str] = []
    at = every
    while at < seconds:
        order = order or random.sample(list(kinds), len(kinds))
        kind = order.pop()
        lasts = {"stop": random.choice((lease / 4, lease * 1.5)), "slow": every}.get(kind, 0.0)
        faults.append(Fault(at, kind, random.randrange(1 << 16), lasts))
        at += every * random.uniform(0.8, 1.2)
    return tuple(faults)
