"""A loop over file descriptors, timers and calls from other threads."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable

Call = Callable[[], None]


class Loop:
    """Runs callbacks one after another in the thread that calls `run`. Only `call` is for other threads."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Call]] = []
        self._order = itertools.count()
        self._calls: deque[Call] = deque()
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._run_calls)

    def call(self, call: Call) -> None:
        """Has `call` run in the loop's thread; safe from other threads and from signal handlers."""
        self._calls.append(call)
        with contextlib.suppress(OSError):  # full: it wakes up anyway; closed: the loop has ended
            self._wake.send(b".")

    def later(self, seconds: float, call: Call) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), call))

    def watch(self, descriptor: int, call: Call) -> None:
        """Runs `call` whenever the descriptor is readable."""
        self._selector.register(descriptor, selectors.EVENT_READ, call)

    def forget(self, descriptor: int) -> None:
        self._selector.unregister(descriptor)

    def run(self, until: Callable[[], bool]) -> None:
        """Returns when `until` says so."""
        while not until():
            wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, _ in self._selector.select(wait):
                now = self._selector.get_map().get(key.fd)
                if now is not None and now.data is key.data:  # not forgotten by the callback before
                    key.data()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        """Nothing can be added any more; calls from other threads are dropped."""
        self._selector.close()
        self._woken.close()
        self._wake.close()

    def _run_calls(self) -> None:
        self._woken.recv(4096)
        while self._calls:
            self._calls.popleft()()
