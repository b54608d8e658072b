"""One incarnation of a worker: its process, and what it prints."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from manyhands.engines.loop import Loop
from manyhands.engines.output import Failure, Lines, TracebackHold, exit_of
from manyhands.engines.process import Child, Guard

_AT_ONCE = 64 * 1024
_MOST_LEFT_OVER = 16 * 1024 * 1024
_TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)  # it may be told to end while it is failing


class WorkerProcess:
    """Runs in a loop; `line(stream, text)` gets its output, `ended(code, failure)` comes last, once.

    `since` is the wall time of its start. `failure` is why it ended itself: a traceback or a usage message,
    which is then not among the lines, or an exit code and the last line on standard error, which is.
    """

    def __init__(
        self,
        loop: Loop,
        command: Sequence[str],
        env: Mapping[str, str],
        guard: Guard,
        line: Callable[[str, str], None],
        ended: Callable[[int, Failure | None], None],
    ) -> None:
        self.since = time.time()
        self.child = Child(command, env, guard, subprocess.PIPE, subprocess.PIPE)
        self._loop, self._line, self._ended = loop, line, ended
        self._hold, self._last = TracebackHold(), ""
        self._streams = [
            _Stream(name, source, Lines())
            for name, source in (("stdout", self.child.stdout), ("stderr", self.child.stderr))
            if source is not None
        ]
        for stream in self._streams:
            loop.watch(stream.descriptor, functools.partial(self._read, stream))
        loop.watch(self.child.pidfd, self._has_ended)

    def _read(self, stream: _Stream) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(stream.descriptor, _AT_ONCE)
            self._take(stream, stream.lines.feed(data) if data else stream.lines.rest())
            if not data:
                self._close(stream)

    def _take(self, stream: _Stream, lines: list[str]) -> None:
        for text in lines:
            if stream.name == "stdout":
                self._line("stdout", text)
                continue
            self._last = text.strip() or self._last
            waiting = self._hold.deadline is not None
            for shown in self._hold.feed(text, time.monotonic()):
                self._line("stderr", shown)
            if not waiting and self._hold.deadline is not None:
                self._loop.later(self._hold.deadline - time.monotonic(), self._lives_on)

    def _lives_on(self) -> None:
        """The traceback that is held did not end the process in time: it was a log line."""
        for text in self._hold.let_go(time.monotonic()):
            self._line("stderr", text)

    def _close(self, stream: _Stream) -> None:
        self._streams.remove(stream)
        self._loop.forget(stream.descriptor)
        stream.source.close()

    def _has_ended(self) -> None:
        self._loop.forget(self.child.pidfd)
        self.child.kill_session()
        for stream in list(self._streams):
            left = _MOST_LEFT_OVER  # a child that left the session may write for ever
            while stream in self._streams and left > 0:
                try:
                    data = os.read(stream.descriptor, _AT_ONCE)
                except BlockingIOError:
                    break
                left -= len(data)
                if not data:
                    break
                self._take(stream, stream.lines.feed(data))
            self._take(stream, stream.lines.rest())
            self._close(stream)
        code = self.child.reap()
        failure = self._hold.failure() if code > 0 or code in _TERMINATED else None
        if failure is None and code > 0 and code not in _TERMINATED and self._last:
            failure = exit_of(code, self._last)
        for text in self._hold.let_go():
            self._line("stderr", text)
        self._ended(code, failure)


class _Stream:
    def __init__(self, name: str, source: IO[bytes], lines: Lines) -> None:
        self.name, self.source, self.lines = name, source, lines
        self.descriptor = source.fileno()
        os.set_blocking(self.descriptor, False)
