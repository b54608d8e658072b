"""What becomes of a script that is in one step for so long that the others go on without it."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from threading import Timer

from manyhands.worker.waiting import Waiting

log = logging.getLogger("manyhands.worker")

TIMES = 4
"""As long as a step may take, and this process ends: whoever keeps it going starts it again."""

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h


def watch(waiting: Waiting) -> None:
    """Show where the script is if its step takes too long, and end this process where it never comes back."""
    step, allowed = waiting.step()
    if step <= allowed:
        return
    frame = sys._current_frames().get(waiting.thread)
    log.warning(
        "worker %s: the script has been in one step for %.0f s. The others go on without it, and this "
        "process ends where it is not back after %.0f s (--patience stretches both). It is here:\n%s",
        waiting.name,
        step,
        TIMES * allowed,
        "".join(traceback.format_stack(frame)).rstrip(),
    )

    def end() -> None:
        if waiting.step()[0] >= TIMES * allowed:
            log.error("worker %s: its script hangs, and this process ends: see above where", waiting.name)
            os._exit(EXIT_CODE)

    timer = Timer(TIMES * allowed - step + 0.1, end)
    timer.daemon = True
    timer.start()
