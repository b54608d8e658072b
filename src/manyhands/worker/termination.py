"""SIGTERM to a worker: its script ends with SystemExit, but never in the middle of what this package does.

Raised where a lock has just been taken, an exception would leave it taken for ever. And while a model is
shared the script comes to the end of its step first, if that takes no longer than half of the time of grace:
there what it has learned can still be shared.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_grace = 0.0
_asked = 0  # the exit code
_until = 0.0
_deferring = _postponed = 0
_impatience = threading.Event()
"""Set when the script has been told."""

REMIND_SECONDS = 0.25


def obey(grace: float) -> None:
    """Take SIGTERM from now on, unless the script does so itself. Only the main thread can.

    `grace`: seconds from a SIGTERM after which nothing is put off any more.
    """
    global _grace
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        _grace = grace
        signal.signal(signal.SIGTERM, _terminated)


def asked() -> bool:
    """The script is to end, and has not heard it yet."""
    return bool(_asked) and threading.current_thread() is threading.main_thread()


def check() -> None:
    """Where nothing is half done: raise the SystemExit that was put off, once."""
    if asked() and not (_postponed and time.monotonic() < _until):
        raise _end()


@contextmanager
def postponed() -> Iterator[None]:
    """What is waited for within may come in the time of grace."""
    global _postponed
    _postponed += 1
    try:
        yield
    finally:
        _postponed -= 1


@contextmanager
def deferred() -> Iterator[None]:
    """Within, the script calls this package after each step, and can be told then."""
    global _deferring
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1


def _terminated(number: int, frame: FrameType | None) -> None:
    global _asked, _until, _impatience
    first = not _asked
    if first:
        _asked, _until, _impatience = 128 + number, time.monotonic() + _grace, threading.Event()
        if _deferring and _grace:
            threading.Thread(target=_remind, args=[number, _impatience], daemon=True).start()
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("manyhands."):
            return
        frame = frame.f_back
    if not (first and _deferring and _grace):
        raise _end()


def _end() -> SystemExit:
    """The script hears of it now."""
    global _asked
    code, _asked = _asked, 0
    _impatience.set()
    return SystemExit(code)


def _remind(number: int, told: threading.Event) -> None:
    """The step takes too long: again and again, for the script may be within this package just then."""
    main = threading.main_thread().ident
    over = told.wait(_grace / 2)
    while not over and main is not None and threading.main_thread().is_alive():
        signal.pthread_kill(main, number)
        over = told.wait(REMIND_SECONDS)
