"""Several parts of one pool in threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Place = TypeVar("Place")
Result = TypeVar("Result")


def run_together(
    places: Sequence[Place], barrier: threading.Barrier, work: Callable[[Place], Result]
) -> list[Result]:
    """`work(place)` in a thread for each, all of which wait for each other at the barrier.

    Raises the first error that is no consequence of another.
    """

    def guarded(place: Place) -> Result:
        try:
            return work(place)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(len(places)) as threads:
        futures = [threads.submit(guarded, place) for place in places]
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    for error in sorted(errors, key=lambda it: isinstance(it, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
