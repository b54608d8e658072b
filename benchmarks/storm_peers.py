"""Other libraries in the storm of `benchmarks.storm`: the same model and pace, and the same kills."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.launching import SCRIPTS, environment
from benchmarks.peers import interpreter
from benchmarks.rows import CannotRun, say
from benchmarks.standing import arrivals, committed_at, share_of_capacity
from manyhands.core.storm import Fault
from manyhands.engines.chaos import Injector

START_SECONDS, RESTART_SECONDS, LOOK_SECONDS = 120.0, 0.5, 0.05


class Weather(NamedTuple):
    """Workers with steps `pace` seconds apart, left alone for `calm` seconds, then killed for `seconds`."""

    workers: int
    pace: float
    lease: float
    calm: float
    seconds: float
    kills: Sequence[Fault]


class Standing(NamedTuple):
    """Batches a second that counted, undisturbed and in the storm, and which part could work then."""

    undisturbed: float
    storm: float
    capacity: float
    kills: int

    @property
    def share(self) -> float:
        return self.storm / self.undisturbed / self.capacity


class Processes:
    """What the injector may kill: whoever has come and lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def workers(self) -> Mapping[str, int]:
        living = {name: pid for _, name, pid in arrivals(self._folder) if Path(f"/proc/{pid}/exe").exists()}
        return dict(sorted(living.items()))

    def hub(self) -> int | None:
        return None

    def port(self, _: str) -> int | None:
        return None


class Child:
    """A process that is started again when it ends, half a second later, as ours are."""

    def __init__(self, command: Sequence[str | Path], env: Mapping[str, str], log: Path) -> None:
        self._command, self._env, self._log = [str(part) for part in command], env, log
        self._due = 0.0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, env=self._env, stdout=log, stderr=log)

    def watch(self) -> None:
        if self.process.poll() is None:
            self._due = time.monotonic() + RESTART_SECONDS
        elif time.monotonic() >= self._due:
            self.process = self._start()

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20.0)


def torchrun(weather: Weather) -> Standing:
    """One torchrun, which starts all of its workers again when one has died."""

    @contextmanager
    def started(folder: Path, env: Mapping[str, str]) -> Iterator[list[Child]]:
        run = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={weather.workers}")
        again = (f"--max-restarts={len(weather.kills) + 5}", SCRIPTS / "storm_torchrun.py")
        yield [Child((sys.executable, *run, *again), env, folder / "log")]

    return _in_the_storm(weather, started, alike=True)


def torchft(weather: Weather) -> Standing:
    """A lighthouse, and workers of one process each that are started again one by one."""
    python = interpreter("torchft")

    @contextmanager
    def started(folder: Path, env: Mapping[str, str]) -> Iterator[list[Child]]:
        with subprocess.Popen(
            [python, SCRIPTS / "storm_lighthouse.py"],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as lighthouse:
            assert lighthouse.stdin is not None
            assert lighthouse.stdout is not None
            try:
                address = f"http://localhost:{lighthouse.stdout.readline().strip().rpartition(':')[2]}"
                yield [
                    Child(
                        (python, SCRIPTS / "storm_torchft.py"),
                        {**env, "MANYHANDS_NAME": str(place), "BENCH_LIGHTHOUSE": address},
                        folder / "log",
                    )
                    for place in range(weather.workers)
                ]
            finally:
                lighthouse.stdin.close()

    return _in_the_storm(weather, started, alike=False)


def _in_the_storm(weather: Weather, started: Callable[..., object], *, alike: bool) -> Standing:
    """`alike`: whichever process comes first after a kill stands for the killed one."""
    with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        settings = environment(BENCH_FOLDER=folder, BENCH_PACE=weather.pace, BENCH_LEASE=weather.lease)
        children: list[Child] = stack.enter_context(started(folder, {**os.environ, **settings}))  # type: ignore[arg-type]
        for child in children:
            stack.callback(child.end)
        _until_all_train(weather.workers, children, folder)
        began = time.time()
        _watch(children, weather.calm)
        injector = Injector(Processes(folder), weather.kills, None, 0)
        since = time.time()
        injector.start()
        try:
            _watch(children, weather.seconds)
        finally:
            injector.stop()
        until = time.time()
        at = [committed_at(folder, moment) for moment in (began, since, until)]
        kills = {float(str(f["at"])): str(f["who"]) for f in injector.done if not f["failed"]}
        awaited = dict.fromkeys(kills, "") if alike else kills
        capacity = share_of_capacity(awaited, arrivals(folder), weather.workers, since, until)
        return Standing(
            (at[1] - at[0]) / (since - began), (at[2] - at[1]) / (until - since), capacity, len(kills)
        )


def _until_all_train(workers: int, children: Sequence[Child], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while len(arrivals(folder)) < workers or committed_at(folder, time.time()) < 5 * workers:
        if time.monotonic() > deadline or children[0].process.poll() is not None:
            said = (folder / "log").read_text(errors="replace").strip().splitlines()
            raise CannotRun(f"it did not begin to train: {said[-1] if said else 'it said nothing'}")
        time.sleep(LOOK_SECONDS)


def _watch(children: Sequence[Child], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for child in children:
            child.watch()
        time.sleep(LOOK_SECONDS)


PEERS: dict[str, tuple[Callable[[Weather], Standing], str]] = {
    "torchrun": (torchrun, "torchrun, gloo, a checkpoint every 20 steps"),
    "torchft": (torchft, "torchft 0.2.0, gloo"),
}


def standing(name: str, weather: Weather) -> Standing:
    """How a peer stands in the storm. Raises CannotRun where it cannot run here."""
    say(
        f"{name}: {weather.calm:.0f} s left alone, then {len(weather.kills)} kills in {weather.seconds:.0f} s"
    )
    found = PEERS[name][0](weather)
    if found.undisturbed <= 0:
        raise CannotRun("it committed nothing while it was left alone")
    return found
