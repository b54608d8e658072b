"""SIGTERM to a worker: its script ends with SystemExit, but never in the middle of what this package does.

Raised where a lock has just been taken, an exception would leave it taken for ever.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_asked = 0


def obey() -> None:
    """Take SIGTERM from now on, unless the script does so itself. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


def check() -> None:
    """Where nothing is half done: raise the SystemExit that was put off, once."""
    global _asked
    if _asked and threading.current_thread() is threading.main_thread():
        code, _asked = _asked, 0
        raise SystemExit(code)


def _terminated(number: int, frame: FrameType | None) -> None:
    global _asked
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("manyhands."):
            _asked = 128 + number
            return
        frame = frame.f_back
    raise SystemExit(128 + number)
