"""Stands where a device's side stream would: what is asked for is done late, and in another order."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch


class Late:
    """Two lanes of copies, each in the order asked for. Each look for one of its events does one of them.

    Nothing is done while it `sleeps`, but where the training joins.
    """

    def __init__(self) -> None:
        self.sleeps = False
        self.done = self.locked = 0
        self._lanes: tuple[list[Copy], list[Copy]] = ([], [])
        self._choice = random.Random(0)

    def lock(self, vector: np.ndarray) -> tuple[np.ndarray, Callable[[], None]]:
        self.locked += 1

        def unlock() -> None:
            assert not any(self._lanes), "memory was unlocked that copies are on their way to"
            self.locked -= 1

        return np.zeros_like(vector), unlock

    def copy(self, to: torch.Tensor, what: torch.Tensor) -> None:
        first = min(to.data_ptr(), what.data_ptr())  # the same two take the same lane, both ways
        self._lanes[first // 64 % 2].append(Copy(to, what))

    def event(self) -> Landing:
        return Landing(self, [copy for lane in self._lanes for copy in lane])

    def join(self) -> None:
        while any(self._lanes):
            self.advance()

    def advance(self) -> None:
        """Do the next copy of some lane."""
        lane = self._choice.choice([lane for lane in self._lanes if lane])
        lane.pop(0).do()
        self.done += 1


class Copy:
    def __init__(self, to: torch.Tensor, what: torch.Tensor) -> None:
        self._to, self._what = to, what
        self.done = False

    def do(self) -> None:
        with torch.no_grad():
            self._to.copy_(self._what)
        self.done = True


class Landing:
    """The event after some copies."""

    def __init__(self, late: Late, copies: list[Copy]) -> None:
        self._late, self._copies = late, copies

    def query(self) -> bool:
        if all(copy.done for copy in self._copies):
            return True
        if not self._late.sleeps:
            self._late.advance()
        return False
