"""Faults done on purpose to the processes of a run on this host, and what was done, as the injector says."""

from __future__ import annotations

import heapq
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Protocol

import msgspec

from manyhands.core.storm import Fault
from manyhands.core.testimony import Testimonies, Testimony

LOOK_SECONDS = 0.1
SLOW_CYCLE, SLOW_AWAKE = 0.1, 0.025
"""Who is slowed down runs a quarter of the time."""


class Target(Protocol):
    """The processes of a run."""

    def workers(self) -> Mapping[str, int]:
        """Process ids by name."""

    def hub(self) -> int | None: ...

    def port(self, worker: str) -> int | None:
        """On which a worker listens for the others."""


class Injector:
    """Does the faults of a storm on a thread of its own, and keeps what it did, and who was there.

    `done` has a record for each fault: when, what, to whom, whether it could be done, and why not. `alive`
    has (time, processes, those of them that can work), until it is stopped: a stopped one cannot, one that
    is slowed down can a quarter, and where workers say so in the folder `said`, not before it has come to
    `join()`. All of it is what this injector saw of the operating system, whatever the run says of itself.
    """

    def __init__(self, target: Target, faults: Sequence[Fault], said: Path | None, seed: int) -> None:
        self.done: list[dict[str, object]] = []
        self.alive: list[tuple[float, int, float]] = []
        self._target, self._faults, self._said, self._random = target, faults, said, Random(seed)
        self._came: set[int] = set()
        self._stopped: set[int] = set()
        self._slow: set[int] = set()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._through, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def through(self) -> bool:
        """All faults have been done, and are over."""
        return self._through.is_set()

    def stop(self) -> None:
        """No more faults; whoever sleeps is woken."""
        self._over.set()
        self._thread.join(30.0)

    def _run(self) -> None:
        began = time.monotonic()
        for fault in self._faults:
            self._later(began + fault.at, lambda fault=fault: self._inject(fault))  # type: ignore[misc]
        try:
            while not self._over.is_set():
                self._look()
                while self._queue and self._queue[0][0] <= time.monotonic():
                    heapq.heappop(self._queue)[2]()
                if not self._queue:
                    self._through.set()
                soon = self._queue[0][0] - time.monotonic() if self._queue else LOOK_SECONDS
                self._over.wait(min(max(soon, 0.0), LOOK_SECONDS))
        finally:
            for pid in (*self._stopped, *self._slow):
                _signal(pid, signal.SIGCONT)

    def _tells(self, pid: int) -> bool:
        """A process has said where its state lies."""
        return self._said is not None and (self._said / f"{pid}.json").exists()

    def _later(self, at: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (at, next(self._order), do))

    def _look(self) -> None:
        if self.alive and time.time() - self.alive[-1][0] < LOOK_SECONDS:
            return
        pids = list(self._target.workers().values())
        able = sum(
            0.0 if pid in self._stopped else SLOW_AWAKE / SLOW_CYCLE if pid in self._slow else 1.0
            for pid in pids
            if self._has_come(pid)
        )
        self.alive.append((time.time(), len(pids), able))

    def _has_come(self, pid: int) -> bool:
        if self._said is not None and pid not in self._came and (self._said / str(pid)).exists():
            self._came.add(pid)
        return self._said is None or pid in self._came

    def _inject(self, fault: Fault) -> None:
        workers = self._target.workers()
        awake = {name: pid for name, pid in workers.items() if pid not in self._stopped}
        names = sorted(n for n, pid in awake.items() if fault.kind != "corrupt" or self._tells(pid))
        who = "hub" if fault.kind == "kill-hub" else names[fault.worker % len(names)] if names else ""
        pid = self._target.hub() if fault.kind == "kill-hub" else workers.get(who)
        at, why = time.time(), "nobody is there" if pid is None else ""
        if pid is not None:
            try:
                why = self._do(fault, who, pid)
            except Exception as error:  # one that cannot be done does not end the storm
                why = f"{type(error).__name__}: {error}"
        self.done.append(
            {"at": at, "kind": fault.kind, "who": who, "pid": pid, "seconds": fault.seconds, "failed": why}
        )

    def _do(self, fault: Fault, who: str, pid: int) -> str:
        """Why it cannot be done; "" where it has been."""
        end = time.monotonic() + fault.seconds
        match fault.kind:
            case "kill" | "kill-hub":
                return _signal(pid, signal.SIGKILL)
            case "stop":
                self._stopped.add(pid)
                self._later(end, lambda: self._wake(pid))
                return _signal(pid, signal.SIGSTOP)
            case "slow":
                self._slow.add(pid)
                self._drowse(pid, end)
                return ""
            case "cut":
                return self._cut(who)
        return self._corrupt(pid)

    def _wake(self, pid: int) -> None:
        self._stopped.discard(pid)
        _signal(pid, signal.SIGCONT)

    def _stir(self, pid: int) -> None:
        if pid not in self._stopped:
            _signal(pid, signal.SIGCONT)

    def _drowse(self, pid: int, end: float) -> None:
        now = time.monotonic()
        if now >= end:
            self._slow.discard(pid)
            return
        _signal(pid, signal.SIGSTOP)
        self._later(now + SLOW_CYCLE - SLOW_AWAKE, lambda: self._stir(pid))
        self._later(now + SLOW_CYCLE, lambda: self._drowse(pid, end))

    def _cut(self, who: str) -> str:
        """Break the connections to a worker; they are made anew at once."""
        port, tool = self._target.port(who), shutil.which("ss")
        if port is None or tool is None or os.geteuid() != 0:
            return "cutting connections needs root and iproute2"
        done = subprocess.run(
            [tool, "-K", "-H", "-t", f"sport = :{port} or dport = :{port}"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        return (
            "" if done.returncode == 0 and done.stdout.strip() else "this kernel closes no sockets of others"
        )

    def _corrupt(self, pid: int) -> str:
        """Turn over a bit of the committed state, in the memory of the process."""
        assert self._said is not None
        try:
            where = json.loads((self._said / f"{pid}.json").read_text())
            if not where:
                return "its state lies on a device"
            place = where["address"] + self._random.randrange(where["bytes"])
            with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
                memory.seek(place)
                (byte,) = memory.read(1)
                memory.seek(place)
                memory.write(bytes([byte ^ 1 << self._random.randrange(8)]))
        except (OSError, ValueError) as error:
            return f"its memory cannot be written: {error}"
        return ""


def _signal(pid: int, number: int) -> str:
    try:
        os.kill(pid, number)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def read_testimonies(said: Path) -> Testimonies:
    """What the workers of a storm have written down; of a line that a kill cut short nothing."""
    found: dict[int, list[Testimony]] = {}
    for path in said.glob("*.held"):
        told = found[int(path.stem)] = list[Testimony]()
        for line in path.read_bytes().splitlines():
            try:
                told.append(msgspec.json.decode(line, type=Testimony))
            except msgspec.DecodeError:
                continue
    return found
