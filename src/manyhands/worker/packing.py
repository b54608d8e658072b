"""A copy of the state of the pool, made while the script's thread waits, and the lock is free."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from manyhands.core.messages import Version
from manyhands.errors import ProtocolError
from manyhands.sharing.tree import Tree
from manyhands.worker.driving import Driver
from manyhands.worker.progress import Progress
from manyhands.worker.waiting import LOOK_SECONDS, Waiting

PACK_SECONDS = 600.0

Packed = TypeVar("Packed")


def packed(
    driver: Driver,
    progress: Progress,
    version: Version,
    waiting: Waiting,
    pack: Callable[[Tree], Packed],
    **more: Tree,
) -> Packed:
    """What `pack` makes of the state as it is now, and `more`; on the script's thread, under the lock.

    Nothing changes what is captured but the script's thread; a large state packed under the lock would
    keep this worker from hearing its peers, and the hub from hearing of it. Raises what `pack` raises.
    """
    state = {
        "version": [version.number, version.view],
        "driver": driver.capture(),
        **progress.capture(),
        **more,
    }
    done: Future[Packed] = Future()

    def work() -> None:
        try:
            result, failure = pack(state), None
        except BaseException as error:  # raised again on the script's thread
            result, failure = None, error
        with waiting.changed:
            if failure is None:
                done.set_result(result)  # type: ignore[arg-type]
            else:
                done.set_exception(failure)
            waiting.changed.notify_all()

    packs = Thread(target=work, name="mh-pack", daemon=True)
    packs.start()
    seconds = PACK_SECONDS * waiting.patience
    deadline = time.monotonic() + seconds
    while not waiting.changed.wait_for(done.done, LOOK_SECONDS):
        waiting.here()
        if time.monotonic() > deadline:
            raise ProtocolError(f"the state of version {version} was not packed in {seconds:.0f} s")
    packs.join()
    return done.result()
