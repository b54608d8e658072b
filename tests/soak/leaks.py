"""2,000 versions and 200 changes of the membership, and nothing that grows with them. `make soak` runs it."""

import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path

import psutil
import pytest

from manyhands.cli.client import HubClient
from manyhands.core.membership import REMEMBERED
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions

VERSIONS, CHANGES = 2_000, 200
WARM_UP = 2 * REMEMBERED + 10
"""Changes before the first look: by then as many have gone as the hub remembers."""

PLACES = ("1", "2")
WINDOW = 10
"""The looks at the beginning and at the end of which the median counts."""

SECONDS = 60.0

SCRIPT = """
import time
import numpy as np
import manyhands as mh

pool = mh.join()
params = {"w": np.zeros(4096, np.float32)}
with pool.share(params, strategy=mh.LocalSGD(1)) as shared:
    for (xs,) in pool.partition((np.ones(600, np.float32),), batch_size=2, epochs=1_000_000):
        time.sleep(0.02)
        params["w"] += 1e-6 * xs.mean()
        shared.step()
        shared.log(loss=float(xs.mean()))
"""


@dataclass(frozen=True)
class Look:
    """At one process: memory in MB; threads, descriptors, sockets, and mappings of shared memory."""

    memory: float
    threads: float
    descriptors: float
    sockets: float
    segments: float

    @classmethod
    def at(cls, pid: int) -> "Look":
        process = psutil.Process(pid)
        open_ = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
        return cls(
            process.memory_info().rss / 1e6,
            process.num_threads(),
            len(open_),
            sum(target.startswith("socket:") for target in open_),
            Path(f"/proc/{pid}/maps").read_text().count("/memfd:manyhands"),
        )


MAY_GROW = Look(memory=4.0, threads=1, descriptors=3, sockets=2, segments=1)
SNAPSHOT_MAY_GROW = 2_000
"""Bytes; how an epoch's leases lie beside each other differs from look to look."""


def snapshot_bytes(folder: Path) -> int:
    """Of what the hub would restart with."""
    with closing(sqlite3.connect(f"file:{folder / 'hub.db'}?mode=ro", uri=True)) as journal:
        (found,) = journal.execute("SELECT length(value) FROM state WHERE key = 'coordinator'").fetchone()
    return int(found)


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} has not come in {SECONDS:g} s"
        time.sleep(0.05)


class Comers:
    """Workers that join the run from outside, one in each place, and leave it again."""

    def __init__(self, run: LocalRun, script: Path) -> None:
        self.client = HubClient(run.url, run.token)
        self.changes = 0
        self._command = [sys.executable, "-m", "manyhands", "join", "--hub", run.url]
        self._environment = {**os.environ, "MANYHANDS_TOKEN": run.token, "OMP_NUM_THREADS": "1"}
        self._script = str(script)
        self._living: dict[str, subprocess.Popen[bytes]] = {}

    def join(self, place: str) -> None:
        """A worker joins there, and has been in a version when this returns."""
        before = {worker["incarnation"] for worker in self.client.workers()}
        self._living[place] = process = subprocess.Popen(
            [*self._command, "--name", place, self._script],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

        def inside() -> bool:
            assert process.poll() is None, f"worker {place} ended with exit code {process.returncode}"
            return any(
                worker["name"] == place and worker["committed"] > 0 and worker["incarnation"] not in before
                for worker in self.client.workers()
            )

        until(f"a version with worker {place}", inside)
        self.changes += 1

    def leave(self, place: str, number: int) -> None:
        """It is killed, or told to end."""
        process = self._living.pop(place)
        os.killpg(process.pid, number)
        process.wait(SECONDS)
        self.changes += 1

    def end(self) -> None:
        for place in [*self._living]:
            self.leave(place, signal.SIGKILL)


def grown(looks: list[Look]) -> dict[str, float]:
    """By how much the median of the last looks is above that of the first."""
    names = [field.name for field in fields(Look)]
    halves = [
        {name: statistics.median(getattr(look, name) for look in part) for name in names}
        for part in (looks[:WINDOW], looks[-WINDOW:])
    ]
    return {name: halves[1][name] - halves[0][name] for name in names}


@pytest.mark.timeout(3600)
def test_nothing_grows_with_versions_and_with_workers_that_come_and_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, folder, began = tmp_path / "train.py", tmp_path / "run", time.monotonic()
    script.write_text(SCRIPT)
    looks: dict[str, list[Look]] = {"hub": [], "worker": []}
    snapshots: list[int] = []
    with LocalRun(LocalOptions(script, workers=1, folder=folder, env={"OMP_NUM_THREADS": "1"})) as run:
        comers = Comers(run, script)
        pids = {"hub": run.hub_pid, "worker": run.worker_pids["0"]}
        try:
            first = 0
            for place in PLACES:
                comers.join(place)
            while True:
                number = comers.client.run()["version"]["number"]
                if comers.changes >= WARM_UP:
                    first = first or number
                    for name, pid in pids.items():
                        assert pid is not None
                        looks[name].append(Look.at(pid))
                    snapshots.append(snapshot_bytes(folder))
                enough = comers.changes - WARM_UP >= CHANGES and number - first >= VERSIONS
                if enough or comers.changes % 20 == 0:
                    with capsys.disabled():
                        said = {name: seen[-1] for name, seen in looks.items() if seen}
                        print(f"{time.monotonic() - began:.0f} s, version {number}, {comers.changes} changes")
                        print(*said.values(), *snapshots[-1:], sep="\n", flush=True)
                if enough:
                    break
                turn = comers.changes // 2
                place = PLACES[turn % len(PLACES)]
                comers.leave(place, (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)[turn % 3])
                comers.join(place)
            assert (run.hub_pid, run.worker_pids["0"]) == (pids["hub"], pids["worker"])
        finally:
            comers.end()
    growth = {name: grown(seen) for name, seen in looks.items()}
    more = statistics.median(snapshots[-WINDOW:]) - statistics.median(snapshots[:WINDOW])
    with capsys.disabled():
        print(growth, f"snapshot {more:+.0f} bytes")
    for name, grew in growth.items():
        for what, by in grew.items():
            assert by <= getattr(MAY_GROW, what), f"{what} of the {name} grew by {by:.1f}"
    assert more <= SNAPSHOT_MAY_GROW, f"the snapshot grew by {more:.0f} bytes"
