"""The one lock of a worker, and how its script's thread waits under it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Condition, get_ident

from manyhands.errors import ManyhandsError
from manyhands.worker import termination

log = logging.getLogger("manyhands.worker")

REMIND_SECONDS = 30.0
LOOK_SECONDS = 0.5  # how long a signal that came just before a wait goes unseen

STEP_SECONDS, STEPS = 300.0, 10
"""A script may be in a step for so long, or so many times as long as in any before; after that it hangs."""


class Waiting:
    """`changed` guards all that a session and its parts share, and is notified after every change.

    The threads of the control connection and of the exchange bring news; the script's thread waits for
    it here. Where it waits, `meanwhile` is called first and after every change, under the lock. `patience`
    stretches every time limit. `error` ends every wait, unless what it is for has come all the same.
    Between its waits the script is in a step, on its `thread`.
    """

    def __init__(self, name: str, patience: float = 1.0) -> None:
        self.changed = Condition()
        self.name, self.patience = name, patience
        self.error: ManyhandsError | None = None
        self.meanwhile: Callable[[], None] = lambda: None
        self._longest = 0.0
        self.begin()

    def fail(self, error: ManyhandsError) -> None:
        """End every wait; the first error counts."""
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def check(self) -> None:
        """Raise the error, if there is one."""
        if self.error is not None:
            raise self.error

    def begin(self) -> None:
        """Steps are counted from here on: what the script did before is none."""
        self._here, self.thread, self._shown = time.monotonic(), get_ident(), False

    def here(self) -> None:
        """The script has come back from a step."""
        self._longest = max(self._longest, time.monotonic() - self._here)
        self.begin()

    def step(self) -> tuple[float, float]:
        """For how many seconds the script has been in its step, and how many it may be."""
        allowed = max(STEP_SECONDS, STEPS * self._longest) * self.patience
        return time.monotonic() - self._here, allowed

    def overlong(self) -> float | None:
        """For how many seconds the script has been in its step, where these are too many; once for each."""
        step, allowed = self.step()
        if step <= allowed or self._shown:
            return None
        self._shown = True
        return step

    def wait(self, condition: Callable[[], object], seconds: float, *, obliging: bool = True) -> bool:
        """Wait for a condition, asked for under the lock; False when it has not come true in time.

        `obliging`: do `meanwhile` what others ask for. Raises the error when there is one.
        """

        def over() -> object:
            if obliging:
                self.meanwhile()
            return condition() or self.error is not None

        deadline = time.monotonic() + seconds
        self.here()
        while (left := deadline - time.monotonic()) > 0:
            with self.changed:
                come = self.changed.wait_for(over, min(left, LOOK_SECONDS))
            self.here()
            if come:
                break
            termination.check()
        with self.changed:
            if condition():
                return True
            self.check()
            return False

    def until(self, condition: Callable[[], object], what: Callable[[], str]) -> None:
        """Wait as long as it takes, and say every while what for: the hub ends what is hopeless."""
        began = time.monotonic()
        while not self.wait(condition, REMIND_SECONDS * self.patience):
            with self.changed:
                missing = what()
            log.warning("worker %s has waited %.0f s for %s", self.name, time.monotonic() - began, missing)
