"""Where a script is that is in one step for so long that the others go on without it."""

from __future__ import annotations

import logging
import sys
import traceback
from threading import Thread

from manyhands.worker.waiting import Waiting

log = logging.getLogger("manyhands.worker")


def show(waiting: Waiting) -> None:
    """Say it once for each such step, on a thread of its own: the script may hang with the log's lock."""
    step = waiting.overlong()
    if step is not None:
        Thread(target=_show, args=[waiting, step], name="mh-hang", daemon=True).start()


def _show(waiting: Waiting, step: float) -> None:
    frame = sys._current_frames().get(waiting.thread)
    where = "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "its thread has ended"
    log.warning(
        "worker %s: the script has been in one step for %.0f s, and the others go on without it. If it "
        "comes back, it takes up their state; if it hangs, end this process. It is here:\n%s",
        waiting.name,
        step,
        where,
    )
