"""How fast this member sends to other hosts, by what the kernel counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LEAST_BYTES: Final = 1 << 20
LEAST_SECONDS: Final = 0.05
"""What must have been sent, and for how long, since the last measurement: less says little about a line."""


class Line:
    """The rate of the line that all connections share, smoothed over the last few measurements."""

    def __init__(self) -> None:
        self.rate = 0.0
        """Bytes/s; 0 while it is not known."""
        self._before: dict[str, tuple[int, float]] = {}

    def measure(self, progress: Mapping[str, tuple[int, float]]) -> float:
        """The rate, from the bytes that each connection has sent so far, and its busy seconds.

        Members send to all others at the same time, so the line is busy as long as the busiest of them.
        """
        sent, busy = 0, 0.0
        for peer, (bytes_, seconds) in progress.items():
            before = self._before.get(peer, (0, 0.0))
            if bytes_ < before[0]:  # another connection by now
                before = 0, 0.0
            sent += bytes_ - before[0]
            busy = max(busy, seconds - before[1])
        if sent >= LEAST_BYTES and busy >= LEAST_SECONDS:
            self.rate = (self.rate + sent / busy) / 2 if self.rate else sent / busy
            self._before = dict(progress)
        return self.rate
