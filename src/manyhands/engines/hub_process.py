"""The hub of a local run: started, waited for, and started again on the same folder when it dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from manyhands.checkpoints.credentials import without_secrets
from manyhands.engines.folder import read_hub_file
from manyhands.engines.loop import Loop
from manyhands.engines.options import LocalOptions
from manyhands.engines.process import Child, Guard, describe_exit

_LOOK_AGAIN = 0.01
_SHORT_LIFE = 5.0
_LEAST_SPACE = 64 * 1024  # bytes
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 8.0


class HubProcess:
    """Runs in a loop. `ready(url)` comes once; `lost(why)` when it cannot be had (any more); `gone()` after
    `stop`. Its output goes to ``hub.log`` in the folder.
    """

    def __init__(
        self,
        loop: Loop,
        options: LocalOptions,
        folder: Path,
        token: str,
        guard: Guard,
        *,
        say: Callable[[str], None],
        ready: Callable[[str], None],
        lost: Callable[[str], None],
        gone: Callable[[], None],
    ) -> None:
        self.child: Child | None = None
        self.restarts = 0
        self._loop, self._options, self._folder, self._token = loop, options, folder, token
        self._guard, self._say, self._ready, self._lost, self._gone = guard, say, ready, lost, gone
        self._was_ready = self._stopping = False
        self._since = 0.0
        before = read_hub_file(folder)
        self._written_before = before.written if before is not None else 0
        self._start()
        self._await(time.monotonic() + options.hub_deadline)

    def stop(self, kill: bool) -> None:
        """Has it end in order, and at once if it does not; `gone` is called when it has."""
        self._stopping = True
        if self.child is None:
            self._gone()
            return
        self.child.signal(signal.SIGKILL if kill else signal.SIGTERM)
        self._loop.later(self._options.grace, self._kill)

    def _kill(self) -> None:
        if self.child is not None:
            self.child.kill_session()

    def _start(self) -> None:
        if self._stopping:
            return
        options = self._options
        command = [*options.hub_command, "--folder", str(self._folder), "--run", self._folder.name]
        command += ["--expected", str(options.workers), "--lease", str(options.lease)]
        if options.port:
            command += ["--port", str(options.port)]
        if options.checkpoint:
            command += ["--checkpoint", without_secrets(options.checkpoint)]
            command += ["--checkpoint-every", options.checkpoint_every]
            command += ["--checkpoint-keep", str(options.checkpoint_keep)]
        if options.resume:
            command += ["--resume", without_secrets(options.resume)]
        env = {**os.environ, **options.env, "MANYHANDS_TOKEN": self._token}
        self._since = time.monotonic()
        with (self._folder / "hub.log").open("ab") as log:
            self.child = Child(command, env, self._guard, log, subprocess.STDOUT)
        self._loop.watch(self.child.pidfd, self._ended)

    def _await(self, deadline: float) -> None:
        if self._stopping or self.child is None:
            return
        told = read_hub_file(self._folder)
        if told is not None and told.pid == self.child.pid and told.written != self._written_before:
            self._was_ready = True
            self._ready(told.url)
        elif time.monotonic() > deadline:
            self._lost(f"the hub was not ready after {self._options.hub_deadline:g} s{self._last_words()}")
        else:
            self._loop.later(_LOOK_AGAIN, lambda: self._await(deadline))

    def _ended(self) -> None:
        assert self.child is not None
        self._loop.forget(self.child.pidfd)
        how = describe_exit(self.child.reap())
        self.child = None
        if self._stopping:
            self._gone()
        elif not self._was_ready:
            self._lost(f"the hub {how} before it was ready{self._last_words()}")
        elif self.restarts >= self._options.hub_restarts:
            self._lost(f"the hub {how} after {self.restarts} restarts{self._last_words()}")
        else:
            short = time.monotonic() - self._since < _SHORT_LIFE
            delay = min(_FIRST_DELAY * 2**self.restarts, _LONGEST_DELAY) if short and self.restarts else 0.0
            self.restarts += 1
            self._say(f"the hub {how}; restarting it on {self._folder}")
            self._loop.later(delay, self._start)

    def _last_words(self) -> str:
        """The last line of the hub's log, as the end of a sentence; the log of a full disk has none."""
        if shutil.disk_usage(self._folder).free < _LEAST_SPACE:
            return (
                f": the disk under {self._folder} is full; free some space there, nothing committed is lost"
            )
        try:
            lines = (self._folder / "hub.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return f": {lines[-1].removeprefix('hub: ')}" if lines else ""
