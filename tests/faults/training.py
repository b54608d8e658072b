"""A real training of a small model by several processes, and everything that it left behind."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from manyhands.cli.client import HubClient
from manyhands.core.messages import Span
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions, Outcome
from manyhands.errors import ManyhandsError
from manyhands.hub.journal import EventRow, Journal, VersionRow

STRATEGIES = ("mh.EveryStep()", "mh.LocalSGD(4)", "mh.DiLoCo(4)")
CODED = (
    "mh.EveryStep(encode=mh.chain(mh.ErrorFeedback(), mh.Quantize(4)))",
    "mh.StreamingDiLoCo(8, fragments=2, overlap=2)",
)
SAMPLES, EPOCHS, BATCH = 4800, 2, 8
SECONDS = 90.0  # after which a wait of a test is a hang (I5)

SCRIPT = f"""
import os, time
from pathlib import Path
import numpy as np
import phases
import manyhands as mh

rng = np.random.default_rng(0)
truth = rng.normal(size=12).astype(np.float32)
x = rng.normal(size=({SAMPLES}, 12)).astype(np.float32)
y = x @ truth + rng.normal(scale=0.1, size=len(x)).astype(np.float32)
go = Path(os.environ["FAULT_FOLDER"], "go")
pace, slowing = float(os.environ.get("PACE", "0.03")), float(os.environ.get("SLOWING", "1.005"))
os.environ["MANYHANDS_MACHINE"] = str(sum(os.environ["MANYHANDS_NAME"].encode()) % int(os.environ["HOSTS"]))

pool = mh.join()
params = {{"w": np.zeros(12, np.float32)}}
batches = pool.partition((x, y), batch_size={BATCH}, epochs={EPOCHS})
with pool.share(params, strategy=STRATEGY, also=[phases.Ballast()]) as shared:
    for step, (xs, ys) in enumerate(batches):
        if not go.exists():  # ever slower, so that the data last until the test lets go
            time.sleep(pace * slowing**step)
        ...
        error = xs @ params["w"] - ys
        gradients = shared.average({{"w": 2 * xs.T @ error / len(xs)}})
        params["w"] -= 0.02 * gradients["w"]
        shared.step()
        shared.log(loss=np.mean(error**2))
phases.say("final", params["w"].tobytes().hex(), float(np.mean((x @ params["w"] - y) ** 2)))
"""


@dataclass(frozen=True)
class Trace:
    """What one incarnation said: ``commit``, ``applied``, ``healed`` and ``final``, in order."""

    name: str
    incarnation: str
    said: list[list[str]] = field(default_factory=list, repr=False)

    def numbers(self, *kinds: str) -> list[tuple[str, int, int]]:
        """(kind, number, view) of each version it spoke of."""
        return [(words[0], int(words[1]), int(words[2])) for words in self.said if words[0] in kinds]


@dataclass(frozen=True)
class Ran:
    """All that is known of a training that came to its end."""

    outcome: Outcome | None
    summary: dict[str, Any]
    traces: list[Trace]
    versions: list[VersionRow]
    events: list[EventRow]
    views: list[tuple[int, int, tuple[str, ...]]]
    """Number, version at which it opened, incarnations."""
    seen: list[tuple[int, int, int]]
    """Version, its view, samples committed, as the hub told over REST while it went on."""
    news: list[str]

    @property
    def finals(self) -> list[list[str]]:
        return [words[1:] for trace in self.traces for words in trace.said if words[0] == "final"]

    @property
    def loss(self) -> float:
        return float(self.finals[0][1])

    def of_kind(self, *kinds: str) -> list[EventRow]:
        return [event for event in self.events if event.kind in kinds]

    def spans(self) -> dict[tuple[int, int], list[Span]]:
        """What each version is made of, by (number, view), in the words of those who committed it."""
        found: dict[tuple[int, int], list[Span]] = {}
        for trace in self.traces:
            for words in trace.said:
                if words[0] == "commit":
                    spans = [Span(*span) for span in json.loads(words[3])]
                    assert found.setdefault((int(words[1]), int(words[2])), spans) == spans
        return found


class Process(subprocess.Popen[bytes]):
    """One that speaks into a file: a pipe would be full, and the process wait, before anybody reads it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], said: Path) -> None:
        self._said = said
        with said.open("wb") as file:
            super().__init__(command, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def said(self) -> str:
        """Waits for its end; I5 where that does not come."""
        self.wait(SECONDS)
        return self._said.read_text()


class Training:
    """A run that can be disturbed: `faults` are done by the workers themselves (see `phases`), others by the
    test. Until `let_go` it is slow enough that it does not end. The workers take turns on so many `hosts`:
    one, unless slices are encoded, which they are between hosts only.
    `ballast`: so many bytes of the state are no parameters. `within` is what else the script does with a
    batch, in one line."""

    def __init__(
        self,
        folder: Path,
        strategy: str,
        *faults: str,
        workers: int = 3,
        hosts: int = 0,
        pace: float = 0.03,
        ballast: int = 0,
        within: str = "",
        **options: Any,
    ) -> None:
        self.folder = folder
        self.script = folder / "train.py"
        self.script.write_text(SCRIPT.replace("STRATEGY", strategy).replace("...", within or "..."))
        self._lines: list[tuple[str, str]] = []
        self.news: list[str] = []
        self.errors: list[str] = []
        self._seen: list[tuple[int, int, int]] = []
        self._over = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="poller")
        self.environment = {
            "FAULTS": " ".join(faults),
            "FAULT_FOLDER": str(folder),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]]),
            "OMP_NUM_THREADS": "1",
            "PACE": str(pace),
            "BALLAST": str(ballast),
            "HOSTS": str(hosts or (workers if strategy in CODED else 1)),
        }
        self.run = LocalRun(
            LocalOptions(
                self.script, workers=workers, folder=folder / "run", env=self.environment, **options
            ),
            self._line,
            self.news.append,
        )

    def _line(self, worker: str, stream: str, text: str) -> None:
        (self._lines if stream == "stdout" else self.errors).append((worker, text))

    def _poll(self) -> None:
        while not self._over.wait(0.05):
            if status := self.status():
                number, view = status["version"]["number"], status["version"]["view"]
                self._seen.append((number, view, status["samples"]["committed"]))

    def __enter__(self) -> Self:
        self.run.start()
        self._poller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.run.kill()
        self.run.wait(SECONDS)
        self._poller.join(SECONDS)

    @property
    def client(self) -> HubClient:
        return HubClient(self.run.url, self.run.token)

    def status(self) -> dict[str, Any]:
        """The run as the hub sees it; nothing while it is away."""
        try:
            return self.client.run()
        except ManyhandsError:
            return {}

    def incarnations(self, name: str) -> list[dict[str, Any]]:
        """Of this worker, the oldest first; none while the hub is away."""
        try:
            found = [worker for worker in self.client.workers() if worker["name"] == name]
        except ManyhandsError:
            return []
        return sorted(found, key=lambda worker: float(worker["joined"]))

    def name_of(self, rank: int) -> str:
        """Who has this rank in the newest view."""
        return next(str(worker["name"]) for worker in self.client.workers() if worker["rank"] == rank)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What of this kind has happened; nothing while the hub is away."""
        try:
            return [event for event in self.client.events() if event["kind"] == kind]
        except ManyhandsError:
            return []

    def trouble(self) -> str:
        """Why the hub cannot write its journal just now; empty where it can, or cannot be asked."""
        try:
            with urllib.request.urlopen(f"{self.run.url}/healthz", timeout=5.0):
                return ""
        except urllib.error.HTTPError as error:
            return str(json.load(error)["why"])
        except OSError:
            return ""

    def sleeps(self, name: str) -> bool:
        """Is this worker's process stopped by a signal?"""
        return psutil.Process(self.run.worker_pids[name]).status() == psutil.STATUS_STOPPED

    def joiner(self, name: str) -> Process:
        """`manyhands join` of the same script, from outside of the run."""
        command = [sys.executable, "-m", "manyhands", "join", "--hub", self.run.url, "--name", name]
        return Process(
            [*command, str(self.script)],
            {**os.environ, **self.environment, "MANYHANDS_TOKEN": self.run.token},
            self.folder / f"said by {name}",
        )

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Waits for the run to get somewhere; I5 where it does not."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"I5: {what} has not come: {self.status()} {self.news}"
            assert not self._over.is_set()
            time.sleep(0.02)

    def committed(self) -> int:
        """Samples, as far as the hub can be asked."""
        return int(self.status().get("samples", {}).get("committed", 0))

    def until_committed(self, samples: int) -> None:
        self.until(f"{samples} samples", lambda: self.committed() >= samples)

    def plan(self, fault: str) -> None:
        """From now on this fault is to be done."""
        with (self.folder / "faults").open("a") as faults:
            faults.write(f"{fault}\n")

    def order(self, fault: str) -> None:
        """This fault is to be done now."""
        self.plan(fault)
        self.until_done(fault)

    def until_done(self, fault: str) -> str:
        """Until this fault is done; returns the name of the worker that did it."""
        done = self.folder / f"done {fault}"
        self.until(f"the fault {fault}", done.is_symlink)
        return str(done.readlink())

    def until_back(self, name: str, incarnations: int = 2) -> None:
        """Until the newest of so many incarnations has something in a committed version."""

        def back() -> bool:
            found = self.incarnations(name)
            return (
                len(found) >= incarnations and found[-1]["state"] == "member" and found[-1]["committed"] > 0
            )

        self.until(f"worker {name}, incarnation {incarnations}", back)

    def let_go(self) -> None:
        """From now on nothing holds the run up."""
        (self.folder / "go").touch()

    def end(self, elsewhere: str = "") -> Ran:
        """Waits for the run's own end and gathers what it left, with what joiners `elsewhere` printed."""
        self.let_go()
        self._lines += re.findall(r"^\[(.*?)\] (.*)$", elsewhere, re.MULTILINE)
        try:
            outcome = self.run.wait(SECONDS)
        except TimeoutError:
            outcome = None
        self._over.set()
        self._poller.join(SECONDS)
        return gather(self.folder / "run", self._lines, outcome, self._seen, self.news)


def gather(
    folder: Path,
    lines: list[tuple[str, str]],
    outcome: Outcome | None,
    seen: list[tuple[int, int, int]],
    news: list[str],
) -> Ran:
    traces: dict[str, Trace] = {}
    for name, text in lines:
        if found := re.fullmatch(r"trace (\S+) (.*)", text):
            traces.setdefault(found[1], Trace(name, found[1])).said.append(found[2].split(maxsplit=3))
    with Journal(folder / "hub.db", readonly=True) as journal:
        versions, events = journal.versions(), journal.events()
        with closing(journal._db.execute("SELECT number, version, incarnations FROM views")) as rows:
            views = sorted((number, at, tuple(json.loads(who))) for number, at, who in rows)
    summary = json.loads((folder / "summary.json").read_text()) if outcome is not None else {}
    return Ran(outcome, summary, list(traces.values()), versions, events, views, list(seen), list(news))
