"""Child processes that cannot outlive the launcher, whatever ends it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Guard:
    """Starts `guard.py`, which kills what is left of our children when this process is gone."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self.pipe = self._process.stdin.fileno()

    @property
    def pid(self) -> int:
        return self._process.pid

    def forget(self, leader: int) -> None:
        """The session of this leader has been cleared up, so its number may be used again by others."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.pipe, b"-%d\n" % leader)

    def close(self) -> None:
        """Ends the guard; it kills what it still knows of."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=5.0)


class Child:
    """A process that leads a session of its own: Ctrl-C does not reach it, and its children can be found.

    On Linux it gets SIGKILL when the thread that created it ends, so that thread must outlive it; the
    guard does the same for whatever it started itself. `pidfd` becomes readable when it has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        guard: Guard,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
    ) -> None:
        self._guard = guard
        self._process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=_tie(os.getpid(), guard.pipe),
        )
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.stdout = self._process.stdout
        self.stderr = self._process.stderr

    def signal(self, number: int) -> None:
        """Sends a signal to the process alone; a process that has ended is left in peace."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def kill_session(self) -> None:
        """Kills the process and what it started. To be called before `reap`: until then the id is ours."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Clears up after a process that has ended, with its children. Returns its code; -n for signal n."""
        self.kill_session()
        code = self._process.wait(timeout=10.0)
        os.close(self.pidfd)
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self._guard.forget(self.pid)
        return code


def describe_exit(code: int) -> str:
    """How a process ended, in words: ``-9`` was killed by SIGKILL, ``3`` ended with exit code 3."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"


def _tie(parent: int, guard: int) -> Callable[[], None]:
    def before_exec() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before prctl: no signal will come
            os._exit(1)
        with contextlib.suppress(OSError):
            os.write(guard, b"+%d\n" % os.getpid())

    return before_exec
