"""A pool of workers in threads of one process, which does in memory what rounds do over the network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from manyhands.sharing.combine import mean
from manyhands.sharing.tree import pack, unpack
from manyhands.testing.together import run_together
from manyhands.worker.driving import Driver, Outcome

Result = TypeVar("Result")
DEADLINE = 60.0
DEVICE = "cpu"

_seeding = threading.Lock()


def seeded(build: Callable[[], Result], seed: int = 0) -> Result:
    """What `build` makes with torch's generator, which all threads share, at this seed; here."""
    import torch

    with _seeding:
        torch.manual_seed(seed)
        return here(build())


def here(made: Any) -> Any:
    """A module or tensor, on the device of the test."""
    return made.to(DEVICE)


class Alone:
    """A pool of one: any use of it is a fault."""

    size, alone, hurry = 1, True, False

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was used in a pool of one")


class Place:
    """One worker's `Rounds`. `weight` is what its contributions weigh; 0 without a say."""

    alone = over = False

    def __init__(self, pool: Pool, rank: int) -> None:
        self.pool, self.rank, self.size = pool, rank, pool.size
        self.weight, self.hurry = 1.0, False
        self.driver: Driver
        self.problems: dict[int, str] = {}
        self.sent: dict[int, np.ndarray] = {}
        self.early: list[int] = []
        self.rejections: list[str] = []
        self.digests: list[str] = []
        self.settled_for = 0
        self.proposed: tuple[np.ndarray, float, bytes]
        self.rounds = 0
        self.captured: dict[int, bytearray] = {}
        self.capture_in: set[int] = set()
        self.replaced_in: set[int] = set()
        self.resigned: list[str] = []
        self.source: Callable[[], Any] = lambda: None
        self.late: dict[int, np.ndarray] = {}

    def share(self, driver: Driver) -> Driver:
        self.driver = driver
        driver.attach(self)
        return driver

    def learned(self, *, earlier: bool = False) -> None:
        pass

    def problem(self, segment: int) -> str:
        return self.problems.get(segment, "")

    def ready(self, segment: int) -> None:
        assert segment not in self.sent, f"segment {segment} was announced twice"
        a, b = self.driver.layout.segments[segment]
        self.sent[segment] = self.driver.contribution[a:b].copy()
        self.early.append(segment)

    def missed(self, *, claim: bool = False, wait: bool = True) -> Outcome | None:  # noqa: ARG002
        """The round in which others share a vector of `late` without this worker, whose place it takes."""
        if self.rounds not in self.late:
            return None
        np.copyto(self.driver.combined, self.late.pop(self.rounds))
        self.rounds += 1
        return Outcome("committed", 1.0, (b"",))

    def settled(self) -> None:
        self.settled_for = self.rounds

    def finish(self, present: bytes, rejected: str = "") -> Outcome:
        self.propose(present, rejected)
        outcome = self.outcome()
        assert outcome is not None
        return outcome

    def propose(self, present: bytes, rejected: str = "") -> None:
        segments = self.driver.layout.segments
        if self.driver.contribution is self.driver.combined:
            assert not (rejected and self.sent), "a reducer that combines in place cannot take it out again"
        assert rejected or sorted(self.sent) == list(range(len(segments))), "a segment was not announced"
        vector = np.concatenate(
            [self.sent.get(i, self.driver.contribution[a:b].copy()) for i, (a, b) in enumerate(segments)]
        )
        np.testing.assert_array_equal(self.driver.contribution, vector, "changed after it was announced")
        if self.driver.contribution is self.driver.combined:
            assert self.settled_for == self.rounds, "overwritten while others may need it"
            self.driver.contribution[:] = np.nan
            self.driver.refill()
            np.testing.assert_array_equal(self.driver.contribution, vector, "refilled differently")
        self.rejections.append(rejected)
        self.sent = {}
        if self.rounds in self.capture_in:
            self.captured[self.rounds] = pack(self.driver.capture())
        self.proposed = vector, 0.0 if rejected else self.weight, present

    def outcome(self, *, wait: bool = True) -> Outcome | None:
        if not wait:
            return None
        parts = self.pool.exchange(self.rank, self.proposed)
        replaced = self.rounds in self.replaced_in
        self.rounds += 1
        if replaced:
            return Outcome("replaced")
        mean(self.driver.combined, [part[0] for part in parts], [part[1] for part in parts])
        return Outcome(
            "committed", sum(part[1] for part in parts), tuple(part[2] for part in parts if part[1] > 0)
        )

    def adopted(self) -> None:
        self.digests.append(self.driver.digest())

    def resign(self, why: str) -> None:
        self.resigned.append(why)

    def heal(self) -> None:
        self.driver.install(unpack(self.source()))


class Pool:
    def __init__(self, size: int) -> None:
        self.size = size
        self._parts: list[Any] = [None] * size
        self._barrier = threading.Barrier(size)
        self.places = [Place(self, rank) for rank in range(size)]

    def exchange(self, rank: int, part: Any) -> Sequence[Any]:
        self._parts[rank] = part
        self._barrier.wait(DEADLINE)
        parts = list(self._parts)
        self._barrier.wait(DEADLINE)
        return parts

    def run(self, work: Callable[[Place], Result]) -> list[Result]:
        """`work(place)` in a thread for each worker; afterwards all must have seen the same digests."""
        results = run_together(self.places, self._barrier, work)
        if not any(place.replaced_in or place.resigned for place in self.places):
            assert len({tuple(place.digests) for place in self.places}) == 1, "members differ"
        return results
