"""The batches of a partitioned data set: what the user's training loop iterates over."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import numpy as np

from manyhands.core.messages import Dataset, Span
from manyhands.core.shuffle import Shuffle
from manyhands.errors import DataError, ProtocolError
from manyhands.worker.datasets import Indices, Source
from manyhands.worker.loading import Spans, loader_for

ORDERS = ("dynamic", "static")

_PART = 4096  # positions shuffled at once: one batch alone would cost half as much


@dataclass(frozen=True)
class Idle:
    """Nothing is left for this worker, but the epoch has not committed: its peers need it to take part.

    `repeat`: the user's own loop must run along, so it gets a batch that does not count: the last one again,
    or `known`, of which others have learned, where this worker has had none.
    """

    repeat: bool = True
    known: Spans = ()


@dataclass(frozen=True)
class Ended:
    """There is nothing more to read: all epochs have committed, or the run's stop condition is met."""

    why: str = ""


class Leases(Protocol):
    """What the batches need of the pool. Spans are positions in the shuffled order of one epoch."""

    def take(self, dataset: int, samples: int) -> Spans | Idle | Ended:
        """The spans of the next batch, one to `samples` positions of one epoch, now counted as read.

        May wait for a lease, under the owner's deadlines. Cut from what is leased by `cut`, so that what
        was read ahead can be used.
        """

    def peek(self, dataset: int, samples: int) -> Spans:
        """Up to so many leased positions, in the order in which `take` will likely give them; never waits."""

    def put_down(self, dataset: int, *, unloaded: Spans = ()) -> None:
        """The loop over the batches has ended or was left; a loop around it goes on with its own batch.

        `unloaded`: the batch that was taken and not handed over.
        """

    def committed(self, dataset: int) -> int:
        """Samples committed by the whole pool, over all epochs."""

    @property
    def size(self) -> int:
        """Members of the view, or the workers expected before the first view; at least 1."""


class Batches:
    """All batches this worker gets of a data set, over all epochs.

    Iterating takes samples from the pool's ledger: a second loop goes on where the first one stopped,
    and a batch that could not be loaded comes first then. No batch mixes epochs; a batch is smaller than
    `batch_size` only where a lease ends.

    Near the end of an epoch a strategy that steps together may need this worker while others still have
    data. It then gets a batch again, freshly loaded, with `weight` 0: what it computes does not count.

    A data set that is only evaluated, and never learned from, ends for each worker when nothing more of
    it is to be had. What it read is committed along with the next version; with a worker that leaves
    before there is one, it falls to those that still read.
    """

    weight: int
    """Samples in the batch last given; 0 for a repeated one and before the first."""

    epoch: int
    """Epoch, from 0, of the samples last taken."""

    def __init__(
        self,
        source: Source,
        dataset: Dataset,
        leases: Leases,
        *,
        workers: int = 0,
        pin: bool = False,
        ahead: int = 2,
    ) -> None:
        """Batches of `source`, declared to the pool as `dataset`.

        `workers` processes (torch data) or threads (other data) read, each `ahead` batches in advance;
        with 0 a batch is read when the loop asks for it. `pin` puts torch tensors into pinned memory.
        """
        self.weight = self.epoch = 0
        self._source, self._dataset, self._leases = source, dataset, leases
        self._workers, self._ahead = whole("workers", workers, 0), whole("ahead", ahead, 1)
        self._pin = bool(pin)
        self._owed: Spans = ()  # taken and so counted as read, but not handed over yet
        self._last: Spans = ()

    def __len__(self) -> int:
        """Batches to expect in all epochs: the fair share of one of the pool's present members.

        A pool of one gets exactly so many. In a larger one a fast worker gets more and a slow one
        fewer, short batches and repeated ones come on top, and it changes with the pool's size.
        """
        together = self._dataset.batch_size * self._leases.size
        return self._dataset.epochs * -(-self._dataset.length // together)

    @property
    def progress(self) -> float:
        """The part of all epochs that the whole pool has committed, 0 to 1."""
        return min(
            1.0, self._leases.committed(self._dataset.index) / (self._dataset.length * self._dataset.epochs)
        )

    def __iter__(self) -> Iterator[Any]:
        loader = loader_for(self._source, self._pick, workers=self._workers, ahead=self._ahead, pin=self._pin)
        try:
            while self._take():
                spans = self._owed or self._last
                soon = self._soon(loader.ahead)
                if not self._owed and not soon:
                    soon = [spans] * min(1, loader.ahead)
                batch = loader.load(spans, soon)
                self.weight = sum(map(len, self._owed))
                self.epoch = spans[0].epoch
                self._last, self._owed = spans, ()
                yield batch
        finally:
            loader.close()
            self._leases.put_down(self._dataset.index, unloaded=self._owed)

    def _take(self) -> bool:
        """Have samples in `_owed`, or none of them for a repeated batch; False at the end."""
        if self._owed:
            return True
        taken = self._leases.take(self._dataset.index, self._dataset.batch_size)
        if isinstance(taken, Ended):
            return False
        if isinstance(taken, tuple):
            if len({span.epoch for span in taken}) != 1 or any(
                not 0 <= span.start < span.stop <= self._dataset.length for span in taken
            ):
                raise ProtocolError(
                    f"a batch must have some of the {self._dataset.length} samples, of one epoch, not {taken}"
                )
            self._owed = taken
        elif not self._last:
            first = Span(self._dataset.index, 0, 0, min(self._dataset.batch_size, self._dataset.length))
            self._last = taken.known or (first,)
        return True

    def _soon(self, batches: int) -> list[Spans]:
        """The spans of the batches that likely follow, at most so many."""
        size, soon = self._dataset.batch_size, list[Spans]()
        leased = self._leases.peek(self._dataset.index, batches * size) if batches else ()
        while leased and len(soon) < batches:
            batch, leased = cut(leased, size)
            soon.append(batch)
        return soon

    def _pick(self, spans: Spans) -> Indices:
        order = self._dataset.length, self._dataset.seed
        return np.concatenate([piece for span in spans for piece in _pieces(*order, span)])


def declare(
    index: int,
    length: int,
    *,
    batch_size: int = 32,
    epochs: int = 1,
    order: str = "dynamic",
    shuffle: bool = True,
    seed: int = 0,
) -> Dataset:
    """What all workers must agree on, from the arguments of `Pool.partition`; DataError for nonsense."""
    if order not in ORDERS:
        raise DataError(f"partition got order={order!r}; it is one of {', '.join(map(repr, ORDERS))}")
    if not isinstance(shuffle, bool):
        raise DataError(f"partition got shuffle={shuffle!r}; give True or False, and the seed as seed=")
    return Dataset(
        index=index,
        length=length,
        batch_size=whole("batch_size", batch_size, 1),
        epochs=whole("epochs", epochs, 1),
        order=order,
        seed=whole("seed", seed) if shuffle else None,
    )


def whole(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int; DataError unless it is a whole number of at least `least`."""
    bound = "" if least is None else f" of at least {least}"
    try:
        number = operator.index(value)
    except TypeError:
        raise DataError(f"partition got {name}={value!r}; give a whole number{bound}") from None
    if least is not None and number < least:
        raise DataError(f"partition got {name}={number}; give a whole number{bound}")
    return number


def cut(spans: Spans, samples: int) -> tuple[Spans, Spans]:
    """Divide spans into the first batch, up to `samples` positions of one epoch, and the rest."""
    batch: list[Span] = []
    for place, span in enumerate(spans):
        if samples == 0 or span.epoch != spans[0].epoch:
            return tuple(batch), spans[place:]
        stop = min(span.stop, span.start + samples)
        batch.append(msgspec.structs.replace(span, stop=stop))
        samples -= stop - span.start
        if stop < span.stop:
            return tuple(batch), (msgspec.structs.replace(span, start=stop), *spans[place + 1 :])
    return tuple(batch), ()


def _pieces(length: int, seed: int | None, span: Span) -> Iterator[Indices]:
    """The samples at the positions of a span, part by part."""
    for part in range(span.start // _PART, -(-span.stop // _PART)):
        first = part * _PART
        yield _part(length, seed, span.epoch, part)[max(0, span.start - first) : span.stop - first]


@lru_cache(maxsize=64)
def _part(length: int, seed: int | None, epoch: int, part: int) -> Indices:
    stop = min(length, (part + 1) * _PART)
    return Shuffle(length, seed, epoch).indices(part * _PART, stop)
