"""torch data sets: batches as a DataLoader gives them, loading processes, pinned memory."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from manyhands.errors import DataError
from manyhands.worker.datasets import Collate, Indices, Items, Source, length_of
from manyhands.worker.loading import Loader, Pick, Spans

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def dataset(dataset: Dataset[Any], collate: Collate | None) -> TorchSource:
    """Read a map-style Dataset; without `collate` its samples become a batch as in a DataLoader.

    Raises DataError for an IterableDataset and for one without a length.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        raise DataError(
            f"partition cannot read {kind}: an IterableDataset has no samples by index, so they cannot be "
            "divided and counted; give a map-style Dataset, or partition the list of its files or shards"
        )
    length = length_of(dataset)
    if type(dataset) is TensorDataset and collate is None:
        return TorchSource(_Tensors(dataset, length))
    return TorchSource(Items(dataset, length, collate or default_collate))


@dataclass(frozen=True)
class TorchSource:
    """A source of torch tensors, with a DataLoader underneath where processes or pinning are asked for."""

    inner: Source

    @property
    def length(self) -> int:
        return self.inner.length

    def batch(self, indices: Indices) -> Any:
        return self.inner.batch(indices)

    def describe(self) -> str:
        return self.inner.describe()

    def loader(self, pick: Pick, *, workers: int, ahead: int, pin: bool) -> Loader:
        return Processes(self.inner, pick, workers, ahead, pin)


@dataclass(frozen=True)
class _Tensors:
    """A TensorDataset, each tensor indexed once for a batch, not once for a sample and then stacked."""

    dataset: TensorDataset
    length: int

    def batch(self, indices: Indices) -> list[torch.Tensor]:
        rows = torch.from_numpy(indices)
        return [tensor[rows] for tensor in self.dataset.tensors]

    def describe(self) -> str:
        return f"a TensorDataset of length {self.length}"


class _Request(NamedTuple):
    """What a loading process is asked for. Number -1 asks for nothing, and is answered at once."""

    number: int
    indices: Indices


_NOTHING = _Request(-1, np.empty(0, np.int64))


class Processes:
    """A DataLoader that is told what to read while it runs.

    A DataLoader asks its sampler for one more batch whenever it hands one out, in the calling thread,
    and gives the batches in the order it asked. So the sampler must neither block (nobody would be left
    to wake it) nor end (the processes would stop): where nothing is known to read, it asks for nothing.
    """

    def __init__(self, source: Source, pick: Pick, workers: int, ahead: int, pin: bool) -> None:
        self.ahead = workers * ahead
        self._requests = _Requests(pick)
        self._arrived: list[tuple[Spans, Any]] = []
        self._batches: Iterator[tuple[int, Any]] | None = None
        self._loader: DataLoader[Any] = DataLoader(
            _Answers(source),
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            pin_memory=pin,
            collate_fn=_as_it_is,
            worker_init_fn=partial(_end_with, _parent()),
        )

    def load(self, wanted: Spans, soon: Sequence[Spans]) -> Any:
        arrived, self._arrived = self._arrived, []
        missing = []
        for spans in (wanted, *soon):
            place = next((at for at, (came, _) in enumerate(arrived) if came == spans), None)
            if place is None:
                missing.append(spans)
            else:
                self._arrived.append(arrived.pop(place))
        self._requests.plan(missing)
        if self._arrived and self._arrived[0][0] == wanted:
            return self._arrived.pop(0)[1]
        return self._receive(wanted, missing)

    def _receive(self, wanted: Spans, missing: Sequence[Spans]) -> Any:
        if self._batches is None:
            self._batches = iter(self._loader)
        while True:
            number, batch = next(self._batches)
            spans = self._requests.answered(number)
            if spans == wanted:
                return batch
            if spans in missing:
                self._arrived.append((spans, batch))

    def close(self) -> None:
        batches, self._batches = self._batches, None
        # Done also when the last reference goes, but a traceback of the user's loop may hold one for long.
        stop = getattr(batches, "_shutdown_workers", None)
        if stop is not None:
            stop()


class _Requests:
    """The sampler: an endless iterator over requests, those planned first, then for nothing."""

    def __init__(self, pick: Pick) -> None:
        self._pick = pick
        self._planned: deque[Spans] = deque()
        self._asked: dict[int, Spans] = {}
        self._number = 0

    def __iter__(self) -> _Requests:
        return self

    def __next__(self) -> _Request:
        if not self._planned:
            return _NOTHING
        spans = self._planned.popleft()
        self._number += 1
        self._asked[self._number] = spans
        return _Request(self._number, self._pick(spans))

    def plan(self, wanted: Sequence[Spans]) -> None:
        """Ask next for what is wanted and has not been asked for yet, in this order."""
        asked = list(self._asked.values())
        self._planned.clear()
        for spans in wanted:
            if spans in asked:
                asked.remove(spans)
            else:
                self._planned.append(spans)

    def answered(self, number: int) -> Spans:
        """The spans of the request with this number, now answered; () for none."""
        return self._asked.pop(number, ())


class _Answers(Dataset[tuple[int, Any]]):
    """What runs in a loading process."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, request: _Request) -> tuple[int, Any]:
        number, indices = request
        return number, self._source.batch(indices) if len(indices) else None


def _as_it_is(answer: Any) -> Any:
    return answer


def _parent() -> int:
    """This process, if loading processes may ask the kernel to end them with it; else 0.

    Linux means the thread that forked, not the process: only the main thread lives as long.
    """
    main = threading.current_thread() is threading.main_thread()
    return os.getpid() if sys.platform == "linux" and main else 0


def _end_with(parent: int, worker: int) -> None:  # noqa: ARG001
    """Have the kernel kill this loading process at once when `parent` is killed.

    It holds copies of the parent's connections, and would keep a dead worker's peers from noticing
    until its own check of the parent, seconds later.
    """
    if parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was killed before the call
            os._exit(1)
