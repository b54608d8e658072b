"""A pool of workers in threads of one process: real drivers, strategies and encodings, and no network.

What crosses a line in a real pool is counted here. All threads wait for each other in every round.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from manyhands.core.rounds import subset_of
from manyhands.sharing.combine import Array, mean
from manyhands.sharing.encode.stage import Bytes
from manyhands.sharing.strategy import Strategy
from manyhands.testing.together import run_together
from manyhands.worker.coding import Coding, Made
from manyhands.worker.driving import Driver, Outcome

Result = TypeVar("Result")
PATIENCE = 600.0


class Place:
    """One worker's `Rounds`. `sent` counts the bytes that it would have sent."""

    alone = hurry = over = False

    def __init__(self, pool: Pool, rank: int) -> None:
        self.pool, self.rank, self.size = pool, rank, pool.size
        self.sent = 0
        self.driver: Driver
        self.coding: Coding
        self.present = b""
        self.rounds = 0

    def share(self, driver: Driver, strategy: Strategy) -> None:
        self.driver = driver
        self.coding = Coding(strategy.encode, driver.layout, max(driver.trailing, 1))
        self.coding.join(driver.layout.segments)
        driver.attach(self)

    def learned(self, *, earlier: bool = False) -> None:
        pass

    def problem(self, segment: int) -> str:  # noqa: ARG002
        return ""

    def ready(self, segment: int) -> None:
        pass

    def missed(self, *, claim: bool = False, wait: bool = True) -> Outcome | None:  # noqa: ARG002
        return None

    def settled(self) -> None:
        pass

    def propose(self, present: bytes, rejected: str = "") -> None:
        """Encode every slice of the contribution, for all."""
        if rejected:
            raise ValueError(f"worker {self.rank} diverged: {rejected}")
        self.present = present
        for segment in range(len(self.driver.layout.segments)):
            for rank, (a, b) in enumerate(self._parts(segment)):
                content = self._encoded(segment, rank, a, b)
                self.sent += len(content) if rank != self.rank else 0

    def outcome(self, *, wait: bool = True) -> Outcome | None:
        """Combine the own slices, and take those of the others."""
        if not wait:
            return None
        self.pool.wait()
        made: list[tuple[int, int, Array]] = []
        for segment in range(len(self.driver.layout.segments)):
            a, b = self._parts(segment)[self.rank]
            inputs = [np.empty(b - a, np.float32) for _ in range(self.size)]
            for place, decoded in zip(self.pool.places, inputs, strict=True):
                content = place._encoded(segment, self.rank, a, b)
                self.coding.decode(content, decoded, self.size, combined=False)
            result, adopted = np.empty(b - a, np.float32), np.empty(b - a, np.float32)
            mean(result, inputs, [1.0] * self.size)
            lost = self.coding.lost_of_means(self.rounds, a, b)
            self.coding.combine(segment, self._all, self.size, result, adopted, lost)
            self.sent += (self.size - 1) * self.coding.nbytes(b - a, self.size, combined=True)
            made.append((a, b, adopted))
        self.pool.made[self.rank] = made
        self.pool.wait()
        for slices in self.pool.made:
            for a, b, adopted in slices:
                self.driver.combined[a:b] = adopted
        self.coding.commit(self._all, counted=True)
        self.rounds += 1
        present = tuple(place.present for place in self.pool.places)
        self.pool.wait()
        return Outcome("committed", float(self.size), present)

    @property
    def _all(self) -> Made:
        return Made(1, self.rounds, subset_of(range(self.size)))

    def _encoded(self, segment: int, rank: int, a: int, b: int) -> Bytes:
        own = Made(1, self.rounds, subset_of((self.rank,)))
        lost = self.coding.lost(self.rounds, a, b)
        return self.coding.contribution(segment, rank, own, self.driver.contribution[a:b], lost)

    def finish(self, present: bytes, rejected: str = "") -> Outcome:
        self.propose(present, rejected)
        outcome = self.outcome()
        assert outcome is not None
        return outcome

    def adopted(self) -> None:
        pass

    def resign(self, why: str) -> None:
        raise AssertionError(why)

    def heal(self) -> None:
        raise AssertionError("nobody is replaced here")

    def _parts(self, segment: int) -> list[tuple[int, int]]:
        return self.driver.layout.slices(segment, (1,) * self.size)


class Pool:
    """So many places, and the barrier between them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.places = [Place(self, rank) for rank in range(size)]
        self.made: list[list[tuple[int, int, Array]]] = [[] for _ in range(size)]
        self._barrier = threading.Barrier(size)

    def wait(self) -> None:
        """Until all are here."""
        self._barrier.wait(PATIENCE)

    def run(self, work: Callable[[Place], Result]) -> list[Result]:
        """`work(place)` in a thread for each; the first error that is no consequence of another is raised."""
        return run_together(self.places, self._barrier, work)
