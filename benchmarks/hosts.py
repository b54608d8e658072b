"""Several hosts on this machine, each in a network namespace behind a line of limited rate."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks.figures import understood
from benchmarks.launching import ROOT, SCRIPTS, environment, need_linux
from benchmarks.rows import CannotRun
from manyhands.engines.folder import read_hub_file

NETLAB = ROOT.parent / "shared" / "netlab"
NETWORK = "10.77.0"
HERE = f"{NETWORK}.254"
"""This machine, as its hosts see it: the hub's address, on a line without a limit."""

WAIT_SECONDS = 120.0
"""For whoever has them now."""


@contextmanager
def hosts(number: int, megabits: float) -> Iterator[None]:
    """Hosts 1 to `number` at 10.77.0.1 and so on. Raises CannotRun where there can be none."""
    need_linux()
    if os.geteuid() != 0:
        raise CannotRun("it needs root, to make network namespaces; without, leave out --net")
    if not NETLAB.exists() or shutil.which("ip") is None or shutil.which("tc") is None:
        raise CannotRun(f"it needs iproute2 and {NETLAB.name} in a folder shared/ beside this repository")
    with NETLAB.open() as lock:
        deadline = time.monotonic() + WAIT_SECONDS
        while not _locked(lock.fileno()):
            if time.monotonic() > deadline:
                raise CannotRun(f"another process has had the hosts of this machine for {WAIT_SECONDS:.0f} s")
            time.sleep(0.5)
        _take_down()
        try:
            netlab("up", str(number), f"{megabits:g}mbit")
            yield
        finally:
            _take_down()


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_down() -> None:
    """Leaves no line either: those outlive their hosts while the kernel has bytes to send."""
    netlab("down")
    for line in Path("/sys/class/net").glob("mhe*"):
        subprocess.run(["ip", "link", "delete", line.name], timeout=60, check=False)


def netlab(*arguments: str) -> None:
    done = subprocess.run([NETLAB, *arguments], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise CannotRun(f"netlab {' '.join(arguments)} failed: {done.stderr.strip()}")


def run_on_hosts(
    script: str, number: int, settings: Mapping[str, object], seconds: float, *, expected: int | None = None
) -> list[Any]:
    """Runs a script once on each host, with a hub here; returns the figures as they came.

    `expected`: so many of them begin together, where it is not all.

    The hosts share this machine's memory, which hosts do not: it is not used. Raises CannotRun, with the last
    lines printed, for a run that failed or was not over in `seconds`.
    """
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as folder:
        own = {"MANYHANDS_SHARED_MEMORY": "0", "MANYHANDS_TOKEN": secrets.token_urlsafe(24)}
        with _hub(Path(folder) / "run", expected or number, own, deadline) as url:
            own["MANYHANDS_HUB"] = url
            return _run(sys.executable, script, number, {**settings, **own, "BENCH_FOLDER": folder}, deadline)


def run_peer_on_hosts(
    python: Path, script: str, number: int, settings: Mapping[str, object], seconds: float
) -> list[Any]:
    """Runs a script of another library once on each host, in the environment of that library."""
    with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as folder:
        deadline = time.monotonic() + seconds
        return _run(str(python), script, number, {**settings, "BENCH_FOLDER": folder}, deadline)


@contextmanager
def _hub(folder: Path, number: int, settings: Mapping[str, str], deadline: float) -> Iterator[str]:
    """A hub that all hosts reach at the address given."""
    serve = [sys.executable, "-m", "manyhands", "hub", "--host", HERE, "--folder", str(folder)]
    hub = subprocess.Popen(
        [*serve, "--expected", str(number)],
        env={**os.environ, **environment(**settings)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _address_of(folder, hub, deadline)
    finally:
        hub.kill()
        hub.wait()


def _run(python: str, script: str, number: int, settings: Mapping[str, object], deadline: float) -> list[Any]:
    figures: list[Any] = []
    said: deque[str] = deque(maxlen=15)
    threads = max(1, (os.cpu_count() or 1) // number)
    common = environment(BENCH_WORKERS=number, OMP_NUM_THREADS=threads, **settings)
    workers: list[subprocess.Popen[str]] = []
    try:
        for host in range(1, number + 1):
            own = {
                "MANYHANDS_NAME": str(host - 1),
                "BENCH_ADDRESS": f"{NETWORK}.{host}",
                "GLOO_SOCKET_IFNAME": "e0",
            }
            workers.append(
                subprocess.Popen(
                    [NETLAB, "exec", str(host), python, str(SCRIPTS / script)],
                    env={**os.environ, **common, **own},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    text=True,
                )
            )
        readers = [Thread(target=_read, args=(worker, figures, said)) for worker in workers]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        if any(reader.is_alive() for reader in readers):
            raise CannotRun(f"{script} was not over in time; it said {list(said)}")
        codes = [worker.wait(10) for worker in workers]
    finally:
        for worker in workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)  # a peer starts processes of its own, and leaves them
            worker.wait()
    if any(codes) or not figures:
        raise CannotRun(f"{script} ended with {codes}; it said {list(said)}")
    return figures


def _address_of(folder: Path, hub: subprocess.Popen[bytes], deadline: float) -> str:
    while time.monotonic() < deadline and hub.poll() is None:
        told = read_hub_file(folder)
        if told is not None:
            return f"http://{HERE}:{told.url.rpartition(':')[2]}"
        time.sleep(0.05)
    raise CannotRun("the hub of the benchmark did not start")


def _read(worker: subprocess.Popen[str], figures: list[Any], said: deque[str]) -> None:
    assert worker.stdout is not None
    for text in worker.stdout:
        found = understood(text)
        if found is None:
            said.append(text.rstrip())
        else:
            figures.append(found)
