"""Copies between the tensors of a model and flat vectors on the host.

Those of the CPU are done as soon as they are asked for. Those of a device go beside its training, on a
stream of their own: they are asked for, and looked for later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from manyhands.errors import MachineError
from manyhands.sharing.combine import Array

WAIT_SECONDS = 300.0
LOOK_SECONDS = 1e-4


class Event(Protocol):
    """Comes once, and has come from then on."""

    def query(self) -> bool: ...


class Side(Protocol):
    """A device's stream of copies, which are done in the order in which they are asked for."""

    def lock(self, vector: Array) -> tuple[Array, Callable[[], None]]:
        """A vector, new and zero, or another in its place, made fit for copies; and what ends that."""

    def copy(self, to: torch.Tensor, what: torch.Tensor) -> None:
        """Ask for a copy of what there will be when all that the training has queued is done."""

    def event(self) -> Event:
        """What comes when all is done that has been asked for."""

    def join(self) -> None:
        """What the training queues from now on begins after all that has been asked for."""


Mark = tuple[Event, ...]
"""All copies that have been asked for until now."""


class Staging:
    """Copies of the tensors of devices that have a side stream, and plain ones of all others.

    Nobody may write to what is copied, or use where it goes, before the copy has landed; the training may
    once it has joined.
    """

    def __init__(self, sides: Mapping[torch.device, Side]) -> None:
        self._sides = sides
        self._unlock: list[Callable[[], None]] = []

    def host(self, vector: Array) -> Array:
        """A vector fit for copies: this one, which is new and zero, or another in its place."""
        side = next(iter(self._sides.values()), None)
        if side is not None:
            vector, unlock = side.lock(vector)
            self._unlock.append(unlock)
        return vector

    def release(self) -> None:
        """There will be no copies any more."""
        self.wait()
        while self._unlock:
            self._unlock.pop()()

    def stages(self, tensor: torch.Tensor) -> bool:
        """Whether copies of this tensor have to be waited for."""
        return tensor.device in self._sides

    def copy(self, to: torch.Tensor, what: torch.Tensor) -> None:
        """Copy a tensor into its place on the host, or back."""
        side = self._sides and (self._sides.get(what.device) or self._sides.get(to.device))
        if side:
            side.copy(to, what)
        else:
            to.copy_(what)

    def on(self, device: torch.device, place: torch.Tensor) -> torch.Tensor:
        """What a place on the host holds, on a device; for the training once it has joined."""
        if device not in self._sides:
            return place.to(device)
        tensor = torch.empty_like(place, device=device)
        self.copy(tensor, place)
        return tensor

    def join(self) -> None:
        """What the training does from now on finds all copies done; does not wait."""
        for side in self._sides.values():
            side.join()

    def mark(self) -> Mark:
        return tuple(side.event() for side in self._sides.values())

    def wait(self, mark: Mark | None = None) -> None:
        """Until a mark has landed, or all that was asked for. Raises `MachineError` if it does not."""
        mark, deadline = self.mark() if mark is None else mark, time.monotonic() + WAIT_SECONDS
        while not landed(mark):
            if time.monotonic() > deadline:
                devices = ", ".join(map(str, self._sides))
                raise MachineError(
                    f"copies between the host and {devices} have not been done in {WAIT_SECONDS:.0f} s: the "
                    "device hangs, or has that much work before them; see the driver's messages (dmesg)"
                )
            time.sleep(LOOK_SECONDS)


def landed(mark: Mark) -> bool:
    """All copies that had been asked for when the mark was made are done."""
    return all(event.query() for event in mark)
