"""How fast this member sends to other hosts, by what the kernel counts, and over how many connections."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping
from typing import Final

from manyhands.exchange.kernel import NO_PROGRESS, Progress

LEAST_BYTES: Final = 1 << 20
LEAST_SECONDS: Final = 0.05
"""What must have been sent, and for how long, since the last measurement: less says little about a line."""

FAR: Final = 0.005
"""Seconds to a member and back from which on one connection may not fill the line: its window, or the time
it takes to recover from a loss, grows with them. Nearer, one does (`benchmarks.exchange --net`)."""

MOST_STREAMS: Final = 8
TRIAL: Final = 3
"""Measurements with so many connections, before their median is compared with that of one fewer."""

FASTER: Final = 1.1
"""What one more must at least be worth for another to be tried."""


class Line:
    """The rate of the line that all connections share, smoothed over the last few measurements."""

    def __init__(self) -> None:
        self.rate = 0.0
        """Bytes/s; 0 while it is not known."""
        self.streams = 1
        """So many connections to each distant member are worth trying."""
        self._before: dict[Hashable, Progress] = {}
        self._trial: list[float] = []
        self._best = 0.0
        self._settled = False

    def measure(self, progress: Mapping[Hashable, Progress]) -> float:
        """The rate, from what each connection has sent so far.

        Members send to all others at the same time, so the line is busy as long as the busiest of them.
        """
        sent, busy = 0, 0.0
        for connection, now in progress.items():
            before = self._before.get(connection, NO_PROGRESS)
            if now.acknowledged < before.acknowledged:  # another connection by now
                before = NO_PROGRESS
            sent += now.acknowledged - before.acknowledged
            busy = max(busy, now.busy - before.busy)
        if sent >= LEAST_BYTES and busy >= LEAST_SECONDS:
            self._before = dict(progress)
            self.rate = (self.rate + sent / busy) / 2 if self.rate else sent / busy
            if any(now.round_trip >= FAR for now in progress.values()):
                self._consider(sent / busy)
        return self.rate

    def _consider(self, rate: float) -> None:
        """Try one connection more as long as the last one has made the line faster."""
        if self._settled:
            return
        self._trial.append(rate)
        if len(self._trial) == TRIAL:
            found, self._trial = statistics.median(self._trial), []
            self._settled = found < FASTER * self._best or self.streams == MOST_STREAMS
            if not self._settled:
                self._best = found
                self.streams += 1
