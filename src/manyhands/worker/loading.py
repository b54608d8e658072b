"""From the spans of a batch to its samples: at once, or ahead of time by threads.

Reading ahead never counts: a loader is told which spans were taken and which will likely follow. A
batch is found again by its spans, so one that was read ahead and then went to another worker is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

from manyhands.core.messages import Span
from manyhands.errors import DataError
from manyhands.worker.datasets import Indices, Source

Spans = tuple[Span, ...]
Pick = Callable[[Spans], Indices]
"""From positions in shuffled order to the samples there."""


class Loader(Protocol):
    """Loads batches for one iteration over them."""

    @property
    def ahead(self) -> int:
        """How many batches beyond the wanted one are worth naming."""

    def load(self, wanted: Spans, soon: Sequence[Spans]) -> Any:
        """The batch of `wanted`; begins with those in `soon`, and forgets every other it began.

        Raises what the data set raises.
        """

    def close(self) -> None:
        """Stop threads and processes; what was read ahead is forgotten."""


@runtime_checkable
class LoadsItself(Protocol):
    """A source with a loader of its own."""

    def loader(self, pick: Pick, *, workers: int, ahead: int, pin: bool) -> Loader: ...


def loader_for(source: Source, pick: Pick, *, workers: int, ahead: int, pin: bool) -> Loader:
    """Load in this thread (`workers` 0), else in the source's own way, else in threads.

    `ahead` is the number of batches that each of the workers reads in advance.
    Raises DataError where `pin` asks for pinned memory that the source does not know.
    """
    if not workers and not pin:
        return Direct(source, pick)
    if isinstance(source, LoadsItself):
        return source.loader(pick, workers=workers, ahead=ahead, pin=pin)
    if pin:
        raise DataError(
            f"pin=True needs torch data, and the data set is {source.describe()}; "
            "give a torch Dataset or tensors, or leave pin out"
        )
    return Threads(source, pick, workers, ahead)


class Direct:
    """Reads a batch when it is wanted, in the thread that wants it."""

    ahead = 0

    def __init__(self, source: Source, pick: Pick) -> None:
        self._source, self._pick = source, pick

    def load(self, wanted: Spans, soon: Sequence[Spans]) -> Any:  # noqa: ARG002
        return self._source.batch(self._pick(wanted))

    def close(self) -> None:
        pass


class Threads:
    """Reads ahead in threads: right for files and arrays, whose reading lets other threads run."""

    def __init__(self, source: Source, pick: Pick, workers: int, ahead: int) -> None:
        self.ahead = workers * ahead
        self._source, self._pick = source, pick
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="manyhands-load")
        self._begun: list[tuple[Spans, Future[Any]]] = []

    def load(self, wanted: Spans, soon: Sequence[Spans]) -> Any:
        former, self._begun = self._begun, []
        for spans in (wanted, *soon):
            place = next((at for at, (begun, _) in enumerate(former) if begun == spans), None)
            if place is None:
                future = self._pool.submit(self._source.batch, self._pick(spans))
            else:
                future = former.pop(place)[1]
            self._begun.append((spans, future))
        for _, forgotten in former:
            forgotten.cancel()
        return self._begun.pop(0)[1].result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._begun.clear()
