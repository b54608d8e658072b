"""A training on three hosts and a hub, with lines between them that are cut: network namespaces of netlab."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from training import SECONDS, Process, Ran, gather

from benchmarks.hosts import HERE, NETLAB, NETWORK, hosts, netlab
from benchmarks.rows import CannotRun
from manyhands.cli.client import HubClient
from manyhands.engines.folder import read_hub_file
from manyhands.engines.options import Outcome
from manyhands.errors import ManyhandsError

HUB = "hub"
NOWHERE = "02:00:00:00:00:99"
LEASE = 3.0


@contextmanager
def lines(folder: Path, script: str, megabits: float = 1000.0, pace: float = 0.03) -> Iterator["Lines"]:
    """Workers 0, 1 and 2 on hosts of their own, and a hub on another; skips where no such hosts can be."""
    try:
        with hosts(3, megabits), Lines(folder, script, pace) as made:
            yield made
    except CannotRun as why:
        pytest.skip(str(why))


class Lines:
    """What is sent from `one` to `other` vanishes, silently, between `cut` and `mend`."""

    def __init__(self, folder: Path, script: str, pace: float) -> None:
        self.folder, self.script, self.hub_folder = folder, folder / "train.py", folder / "run"
        self.script.write_text(script)
        self.environment = {
            **os.environ,
            "MANYHANDS_TOKEN": secrets.token_urlsafe(8),
            "FAULTS": "",
            "FAULT_FOLDER": str(folder),
            "PACE": str(pace),
            "SLOWING": "1",
            "HOSTS": "3",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]]),
        }
        self.processes: list[Process] = []

    def __enter__(self) -> Self:
        hub = ("hub", "--host", HERE, "--expected", "3", "--lease", str(LEASE))
        self._start("", *hub, "--folder", str(self.hub_folder))
        self.until("the hub", lambda: read_hub_file(self.hub_folder) is not None)
        told = read_hub_file(self.hub_folder)
        assert told is not None
        self.url = f"http://{HERE}:{told.url.rpartition(':')[2]}"
        self.client = HubClient(self.url, self.environment["MANYHANDS_TOKEN"])
        for name in "012":
            self._start(name, "join", "--hub", self.url, "--name", name, str(self.script))
        return self

    def __exit__(self, *_: object) -> None:
        for name in "012":
            self.mend(HUB, name)
        for process in self.processes:
            process.kill()
            process.wait()

    def _start(self, name: str, *arguments: str) -> None:
        place = [str(NETLAB), "exec", str(int(name) + 1)] if name else []
        command = [*place, sys.executable, "-m", "manyhands", *arguments]
        self.processes.append(Process(command, self.environment, self.folder / f"said by {name or HUB}"))

    def cut(self, one: str, *others: str) -> None:
        """From now on the others hear nothing of one."""
        for other in others:
            self._neighbour("replace", one, other, "lladdr", NOWHERE, "nud", "permanent")

    def mend(self, one: str, *others: str) -> None:
        for other in others:
            self._neighbour("del", one, other)

    def unplug(self, name: str) -> None:
        """The whole host."""
        netlab("cut", str(int(name) + 1))

    def plug_in(self, name: str) -> None:
        netlab("heal", str(int(name) + 1))

    def _neighbour(self, verb: str, one: str, other: str, *more: str) -> None:
        place = [] if one == HUB else ["-n", f"mh{int(one) + 1}"]
        device = "mhbr0" if one == HUB else "e0"
        address = HERE if other == HUB else f"{NETWORK}.{int(other) + 1}"
        command = ["ip", *place, "neigh", verb, address, *more, "dev", device]
        subprocess.run(command, check=verb == "replace", timeout=10, capture_output=True)

    def status(self) -> dict[str, Any]:
        try:
            return self.client.run()
        except ManyhandsError:
            return {}

    def committed(self) -> int:
        return int(self.status().get("samples", {}).get("committed", 0) or 0)

    def heard(self) -> dict[str, float]:
        """Who holds the state of the newest view, by name, and when the hub has last heard from it."""
        try:
            workers = self.client.workers()
        except ManyhandsError:
            return {}
        return {worker["name"]: worker["last_heard"] for worker in workers if worker["state"] == "member"}

    def members(self) -> set[str]:
        return set(self.heard())

    def incarnations(self, name: str) -> list[dict[str, Any]]:
        """Of this worker, the oldest first; none where the hub cannot be asked."""
        try:
            found = [worker for worker in self.client.workers() if worker["name"] == name]
        except ManyhandsError:
            return []
        return sorted(found, key=lambda worker: float(worker["joined"]))

    def starts(self, name: str) -> int:
        """How many incarnations of it there have been."""
        return len(self.incarnations(name))

    def is_back(self, name: str, starts: int) -> bool:
        """Is everybody a member, and has a later incarnation of this one something in a committed version?"""
        found = self.incarnations(name)
        return len(found) > starts and found[-1]["committed"] > 0 and self.members() == {"0", "1", "2"}

    def rank(self, name: str) -> int | None:
        """In the newest view."""
        found = self.incarnations(name)
        return found[-1]["rank"] if found else None

    def until(self, what: str, condition: Callable[[], object], seconds: float = SECONDS) -> None:
        """Waits for it; I5 where it does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"I5: {what} has not come: {self._story()}"
            time.sleep(0.05)

    def _story(self) -> str:
        try:
            return "".join(f"\n  {event['at']:.2f} {event['text']}" for event in self.client.events())
        except (ManyhandsError, AttributeError) as error:
            return str(error)

    def end(self) -> Ran:
        """Nothing holds the training up any more; waits for its end, and gathers what it left."""
        (self.folder / "go").touch()
        said = [process.said() for process in self.processes[1:]]
        code = max(process.returncode for process in self.processes[1:])
        self.until("the summary", lambda: (self.hub_folder / "summary.json").exists())
        summary = json.loads((self.hub_folder / "summary.json").read_text())
        outcome = Outcome(code, "", self.hub_folder, {}, 0, 0.0)
        found = [pair for text in said for pair in re.findall(r"^\[(.*?)\] (.*)$", text, re.MULTILINE)]
        ran = gather(self.hub_folder, found, outcome, [], [])
        assert ran.summary == summary
        return ran
