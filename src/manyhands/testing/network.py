"""Virtual time and an unreliable network in memory, all from one seed."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random


@dataclass
class Clock:
    """A heap of things to do at a virtual time, in seconds."""

    now: float = 0.0
    _heap: list[tuple[float, int, Callable[[], object]]] = field(default_factory=list)
    _count: int = 0

    def at(self, when: float, what: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, what))

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        self.at(self.now + seconds, what)

    def step(self) -> bool:
        """Do the next thing; False when there is none."""
        if not self._heap:
            return False
        self.now, _, what = heapq.heappop(self._heap)
        what()
        return True


@dataclass
class Cuts:
    """From which place nothing reaches which, and until when; each direction by itself."""

    clock: Clock
    _until: dict[tuple[str, str], float] = field(default_factory=dict)
    last: float = 0.0
    """When the last of them ends, or has ended."""

    def cut(self, source: str, target: str, seconds: float) -> None:
        until = max(self.until(source, target), self.clock.now + seconds)
        self._until[source, target] = until
        self.last = max(self.last, until)

    def until(self, source: str, target: str) -> float:
        return self._until.get((source, target), 0.0)

    def open(self, source: str, target: str) -> bool:
        return self.clock.now >= self.until(source, target)

    def free(self, one: str, other: str, seconds: float) -> bool:
        """Both directions have been open for so long."""
        return self.clock.now >= max(self.until(one, other), self.until(other, one)) + seconds

    def both(self, one: str, other: str) -> bool:
        """Both directions are open, as a handshake needs it."""
        return self.open(one, other) and self.open(other, one)


@dataclass
class Stream:
    """One direction of a connection: in order and once; what meets a cut comes when it is over."""

    clock: Clock
    random: Random
    cuts: Cuts
    source: str
    target: str
    slow: float = 0.02
    _last: float = 0.0

    def send(self, deliver: Callable[[], None]) -> None:
        self._last = max(self._last, self.clock.now + self.random.random() * self.slow)
        self.clock.at(self._last, lambda: self._deliver(deliver))

    def _deliver(self, deliver: Callable[[], None]) -> None:
        if self.cuts.open(self.source, self.target):
            deliver()
        else:
            self.clock.at(self.cuts.until(self.source, self.target), lambda: self._deliver(deliver))


@dataclass
class Datagrams:
    """From one member to another, over several connections that break: in any order, lost, doubled or late.

    Chances: `loss`, `twice`, and `late` for one that takes up to `LATEST` seconds.
    """

    LATEST = 4.0

    clock: Clock
    random: Random
    loss: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    slow: float = 0.02

    def send(self, deliver: Callable[[], None]) -> None:
        """Deliver later, perhaps never, perhaps twice."""
        draw = self.random.random
        for _ in range(2 if draw() < self.twice else 1):
            if draw() >= self.loss:
                longest = self.LATEST if draw() < self.late else self.slow * (10.0 if draw() < 0.03 else 1.0)
                self.clock.after(draw() * longest, deliver)
