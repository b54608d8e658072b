"""Several hosts on this machine, each in a network namespace behind a line of limited rate."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks.launching import ROOT, SCRIPTS, environment, need_linux, understood
from benchmarks.rows import CannotRun
from manyhands.engines.folder import read_hub_file

NETLAB = ROOT.parent / "shared" / "netlab"
HERE = "10.77.0.254"
"""This machine, as its hosts see it: the hub's address, on a line without a limit."""


@contextmanager
def hosts(number: int, megabits: float) -> Iterator[None]:
    """Hosts 1 to `number` at 10.77.0.1 and so on. Raises CannotRun where there can be none."""
    need_linux()
    if os.geteuid() != 0:
        raise CannotRun("it needs root, to make network namespaces; without, leave out --net")
    if not NETLAB.exists() or shutil.which("ip") is None or shutil.which("tc") is None:
        raise CannotRun(f"it needs iproute2 and {NETLAB.name} in a folder shared/ beside this repository")
    _netlab("down")
    try:
        _netlab("up", str(number), f"{megabits:g}mbit")
        yield
    finally:
        _netlab("down")


def _netlab(*arguments: str) -> None:
    done = subprocess.run([NETLAB, *arguments], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise CannotRun(f"netlab {' '.join(arguments)} failed: {done.stderr.strip()}")


def run_on_hosts(script: str, number: int, settings: Mapping[str, object], seconds: float) -> list[Any]:
    """Runs a script once on each host, with a hub here; returns the figures as they came.

    The hosts share this machine's memory, which hosts do not: it is not used. Raises CannotRun, with the last
    lines printed, for a run that failed or was not over in `seconds`.
    """
    figures: list[Any] = []
    said: deque[str] = deque(maxlen=15)
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as name:
        folder, token = Path(name), secrets.token_urlsafe(24)
        threads = max(1, (os.cpu_count() or 1) // number)
        apart = {"MANYHANDS_SHARED_MEMORY": 0, "MANYHANDS_TOKEN": token, "OMP_NUM_THREADS": threads}
        common = environment(BENCH_FOLDER=folder, BENCH_WORKERS=number, **apart, **settings)
        serve = [sys.executable, "-m", "manyhands", "hub", "--host", HERE, "--folder", str(folder / "run")]
        hub = subprocess.Popen(
            [*serve, "--expected", str(number)],
            env={**os.environ, **common},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        workers: list[subprocess.Popen[str]] = []
        try:
            url = _address_of(folder / "run", hub, deadline)
            for host in range(1, number + 1):
                own = {"MANYHANDS_HUB": url, "MANYHANDS_NAME": str(host - 1), "GLOO_SOCKET_IFNAME": "e0"}
                workers.append(
                    subprocess.Popen(
                        [NETLAB, "exec", str(host), sys.executable, str(SCRIPTS / script)],
                        env={**os.environ, **common, **own},
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        text=True,
                    )
                )
            readers = [Thread(target=_read, args=(worker, figures, said)) for worker in workers]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join(max(0.0, deadline - time.monotonic()))
            if any(reader.is_alive() for reader in readers):
                raise CannotRun(f"{script} was not over after {seconds:.0f} s; it said {list(said)}")
            codes = [worker.wait(10) for worker in workers]
        finally:
            for process in (*workers, hub):
                process.kill()
                process.wait()
    if any(codes) or not figures:
        raise CannotRun(f"{script} ended with {codes}; it said {list(said)}")
    return figures


def _address_of(folder: Path, hub: subprocess.Popen[str], deadline: float) -> str:
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
