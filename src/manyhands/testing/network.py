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
    _heap: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self.at(self.now + seconds, what)

    def step(self) -> bool:
        """Do the next thing; False when there is none."""
        if not self._heap:
            return False
        self.now, _, what = heapq.heappop(self._heap)
        what()
        return True


@dataclass
class Channel:
    """From one process to another. `fifo`: in order and once; otherwise lossy by `loss` and `twice`."""

    clock: Clock
    random: Random
    fifo: bool
    loss: float = 0.0
    twice: float = 0.0
    slow: float = 0.02
    _last: float = 0.0

    def send(self, deliver: Callable[[], None]) -> None:
        """Deliver later, perhaps never, perhaps twice."""
        if self.fifo:
            self._last = max(self._last, self.clock.now + self.random.random() * self.slow)
            self.clock.at(self._last, deliver)
            return
        for _ in range(2 if self.random.random() < self.twice else 1):
            if self.random.random() >= self.loss:
                late = 10.0 if self.random.random() < 0.03 else 1.0
                self.clock.after(self.random.random() * self.slow * late, deliver)
