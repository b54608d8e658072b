"""When a worker has taken enough local steps to share what it learned."""

from __future__ import annotations

import time

from manyhands.sharing.rhythm import Seconds


class Pace:
    """Counts the local steps since the last version, or their time: `every` of them are `due`.

    What is shared in `fragments` is due as many times as often.
    """

    def __init__(self, every: int | Seconds, fragments: int = 1) -> None:
        self._steps = 0 if isinstance(every, Seconds) else -(-every // fragments)
        self._seconds = every.seconds / fragments if isinstance(every, Seconds) else 0.0
        self.restart()

    def restart(self) -> None:
        """A round was begun, or is over."""
        self._taken = 0
        self._began = self._stepped = time.monotonic()
        self._last = 0.0

    def stepped(self) -> None:
        """A local step was taken."""
        now = time.monotonic()
        self._taken += 1
        self._last, self._stepped = now - self._stepped, now

    @property
    def due(self) -> bool:
        """Another step would be one too many, or end too late."""
        if self._steps:
            return self._taken >= self._steps
        return self._taken > 0 and self._stepped - self._began + self._last > self._seconds
