"""The local engine: a hub and n workers on this host, as one object."""

from __future__ import annotations

import secrets
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self

from manyhands.engines.folder import claim, new_run_id, read_hub_file
from manyhands.engines.options import LocalOptions, Outcome
from manyhands.engines.process import Child, Guard
from manyhands.engines.supervisor import Say, SayLine, Supervisor
from manyhands.errors import ConfigurationError, MachineError


class LocalRun:
    """A run of `manyhands run`, for Python: ``start()``, then ``wait()``; usable in ``with``, which stops it.

    `lines(worker, stream, text)` gets each line that workers print (worker ``""``: the traceback that all
    of them share), `news(sentence)` what happened to processes; both are called in the run's own thread.
    Nothing that it started is left when `wait` returns, nor when this process is killed.
    """

    def __init__(self, options: LocalOptions, lines: SayLine | None = None, news: Say | None = None) -> None:
        self.options = options
        self.folder: Path | None = None
        self.token = options.token or ""
        self._lines: SayLine = lines or (lambda _worker, _stream, _text: None)
        self._news: Say = news or (lambda _sentence: None)
        self._supervisor: Supervisor | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._ready = threading.Event()
        self._over = threading.Event()
        self._began = self._seconds = 0.0

    def start(self) -> None:
        """Returns when the hub is ready and all workers have been started.

        Raises `UserError`, `ConfigurationError` or `MachineError` in one sentence where that cannot be.
        """
        self.options.check()
        self._began = time.monotonic()
        lock = self._open_folder()
        guard = Guard()
        self._supervisor = Supervisor(self.options, self.folder, self.token, guard, self._lines, self._news)
        self._thread = threading.Thread(
            target=self._live, args=(self._supervisor, guard, lock), name="local-run", daemon=True
        )
        self._thread.start()
        try:
            while not self._ready.wait(0.05) and not self._over.is_set():
                continue
        except BaseException:  # Ctrl-C, before anybody could ask for an orderly end
            self.kill()
            self._over.wait(30.0)
            raise
        if not self._ready.is_set() and (outcome := self.wait()).code == 1:
            raise MachineError(outcome.why)

    def wait(self, timeout: float | None = None) -> Outcome:
        """How the run ended. Raises `TimeoutError` when it has not after `timeout` seconds."""
        if not self._over.wait(timeout):
            raise TimeoutError(f"the run has not ended after {timeout} s")
        assert self._thread is not None
        assert self._supervisor is not None
        self._thread.join(timeout=10.0)
        if self._error is not None:
            raise self._error
        supervisor = self._supervisor
        return Outcome(
            code=supervisor.code,
            why=supervisor.why,
            folder=self.folder,
            restarts={name: place.restarts for name, place in supervisor.places.items()},
            hub_restarts=supervisor.hub.restarts if supervisor.hub is not None else 0,
            seconds=self._seconds,
        )

    def stop(self, code: int = 143, why: str = "stopped") -> None:
        """Asks workers, then the hub, to leave in order. Returns at once; safe in a signal handler."""
        self._order(lambda supervisor: supervisor.stop(code, why))

    def kill(self, code: int = 137, why: str = "killed") -> None:
        """Ends every process at once. Returns at once; safe in a signal handler."""
        self._order(lambda supervisor: supervisor.kill(code, why))

    def add_worker(self, name: str) -> None:
        """Starts one more worker, a late joiner."""
        self._order(lambda supervisor: supervisor.add(name))

    def kill_worker(self, name: str, number: int = signal.SIGKILL) -> float:
        """Sends SIGKILL, or another signal, to one worker's process. Returns the wall time of it.

        Raises `ConfigurationError` where no such worker runs just now.
        """
        return self._signal(lambda supervisor: supervisor.worker_child(name), f"worker {name}", number)

    def kill_hub(self, number: int = signal.SIGKILL) -> float:
        """Sends SIGKILL, or another signal, to the hub. Returns the wall time of it."""
        return self._signal(lambda supervisor: supervisor.hub_child(), "hub", number)

    @property
    def url(self) -> str:
        """Where the hub answers, once the run has started."""
        return self._supervisor.url if self._supervisor is not None else ""

    @property
    def worker_pids(self) -> dict[str, int]:
        """Process ids of the workers that run now, by name."""
        if self._supervisor is None:
            return {}
        children = {name: self._supervisor.worker_child(name) for name in list(self._supervisor.places)}
        return {name: child.pid for name, child in children.items() if child is not None}

    @property
    def hub_pid(self) -> int | None:
        child = self._supervisor.hub_child() if self._supervisor is not None else None
        return child.pid if child is not None else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._over.wait(30.0)

    def _open_folder(self) -> IO[bytes] | None:
        options = self.options
        if options.hub is not None:
            return None
        self.folder = options.folder or options.runs / new_run_id()
        lock = claim(self.folder)
        before = read_hub_file(self.folder)
        self.token = options.token or (before.token if before is not None else secrets.token_urlsafe(24))
        return lock

    def _live(self, supervisor: Supervisor, guard: Guard, lock: IO[bytes] | None) -> None:
        try:
            supervisor.run(self._ready.set)
        except BaseException as error:
            self._error = error
        finally:
            guard.close()
            if lock is not None:
                lock.close()
            self._seconds = time.monotonic() - self._began
            self._over.set()

    def _order(self, order: Callable[[Supervisor], None]) -> None:
        supervisor = self._supervisor
        if supervisor is not None:
            supervisor.loop.call(lambda: order(supervisor))

    def _signal(self, find: Callable[[Supervisor], Child | None], whom: str, number: int) -> float:
        """Done in the run's thread, where a process cannot be reaped, and its number reused, meanwhile."""
        done = threading.Event()
        sent: list[float] = []

        def send(supervisor: Supervisor) -> None:
            child = find(supervisor)
            if child is not None:
                sent.append(time.time())
                child.signal(number)
            done.set()

        self._order(send)
        if not done.wait(5.0) or not sent:
            raise ConfigurationError(f"no {whom} runs just now: workers {', '.join(self.worker_pids)} do")
        return sent[0]
