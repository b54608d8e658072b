"""What only CUDA has: streams beside the training's, and page-locked memory that they copy from and to."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from manyhands.frameworks.torch.staging import Event, Staging
from manyhands.sharing.combine import Array

log = logging.getLogger("manyhands.frameworks")

_PORTABLE: Final = 1  # cudaHostRegisterPortable: for all devices of this process


def staging_for(tensors: Iterable[torch.Tensor]) -> Staging:
    """Copies of these tensors, with a side stream for each CUDA device that holds one."""
    devices = dict.fromkeys(tensor.device for tensor in tensors if tensor.is_cuda)
    return Staging({device: SideStream(device) for device in devices})


class SideStream:
    """A stream for the copies of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def lock(self, vector: Array) -> tuple[Array, Callable[[], None]]:
        """Page-lock it, in pages of its own. Where the system refuses, whoever copies from it waits."""
        if vector.ctypes.data % mmap.PAGESIZE:
            vector = np.frombuffer(mmap.mmap(-1, vector.nbytes), vector.dtype)
        with torch.cuda.device(self._device):
            error = int(_runtime().cudaHostRegister(vector.ctypes.data, vector.nbytes, _PORTABLE))
            if not error:
                return vector, partial(_unlock, vector)
            with suppress(RuntimeError):  # CUDA tells of the error again where the next kernel is launched
                torch.zeros(1, device=self._device).add_(1)
        log.warning(
            "CUDA cannot lock %d MB of the host's memory (error %d), so copies from and to %s hold up the "
            "training; see how much memory is free",
            vector.nbytes >> 20,
            error,
            self._device,
        )
        return vector, lambda: None

    def copy(self, to: torch.Tensor, what: torch.Tensor) -> None:
        """Begin after what the training has queued so far."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            to.copy_(what, non_blocking=True)
        (to if to.is_cuda else what).record_stream(self._stream)  # its memory is not given out before

    def event(self) -> Event:
        """Comes when all copies are done."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def join(self) -> None:
        """The training waits for the copies."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)


def _unlock(vector: Array) -> None:
    _runtime().cudaHostUnregister(vector.ctypes.data)


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
