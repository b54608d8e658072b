"""What kill -9 costs: of a random worker of four, again and again, and of the hub.

Workers take paced steps on a small model of numpy (a round of EveryStep is one step, of DiLoCo ten), so
that they do not wait for the cores of this host, as they would not on machines of their own. Who kills
notes the time; a kill comes at a random moment once all contribute again.

To the next commit: from the kill to the first version of the view without the dead one, less the median
round. To full strength: to the first version that holds something of every worker again; the launcher
waits half a second before it restarts one. For the hub: the longest that any worker paused around the
kill, by its own clock, less its median step; workers need no hub for a round. At the end the ledger tells
what was lost or counted twice.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.launching import SCRIPTS, environment, need_linux
from benchmarks.rows import CannotRun, Row, main, quartiles, say
from manyhands.cli.client import HubClient
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions
from manyhands.errors import ConfigurationError, HubUnreachable
from manyhands.hub.journal import VersionRow
from manyhands.hub.summary import read_history

MOST_SECONDS = 1.0
PACE, BATCH = 0.02, 4
CYCLE_SECONDS = 8.0
PATIENCE = 60.0
HUB_WINDOW = 3.0


@dataclass
class Kills:
    """When, by the clock of who killed, and until when the workers kept their pace: Unix seconds."""

    workers: list[float] = field(default_factory=list)
    hub: list[float] = field(default_factory=list)
    paced: float = 0.0


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_linux()
    workers, kills, hub_kills = (2, 1, 1) if given.quick else (given.workers, given.kills, given.hub_kills)
    for strategy in ["DiLoCo"] if given.quick else ["EveryStep", "DiLoCo"]:
        with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as folder:
            yield from killed(strategy, workers, kills, hub_kills, random.Random(given.seed), Path(folder))


def killed(
    strategy: str, workers: int, kills: int, hub_kills: int, dice: random.Random, folder: Path
) -> Iterator[Row]:
    """One run of a strategy, with all its kills, to the end of its data."""
    finals: list[str] = []

    def line(worker: str, _: str, text: str) -> None:
        if text.startswith("final"):
            finals.append(text)
        else:
            say(f"[{worker}] {text}")

    samples = int((kills + hub_kills + 1) * CYCLE_SECONDS * workers * BATCH / PACE)
    options = LocalOptions(
        script=SCRIPTS / "recovery.py",
        workers=workers,
        runs=folder,
        env=environment(
            BENCH_FOLDER=folder,
            BENCH_STRATEGY=strategy,
            BENCH_SAMPLES=samples,
            BENCH_BATCH=BATCH,
            BENCH_PACE=PACE,
        ),
        max_restarts=kills + 1,
        hub_restarts=hub_kills + 1,
    )
    done = Kills()
    with LocalRun(options, lines=line) as run:
        hub = Watch(HubClient(run.url, run.token), workers)
        for number in range(kills + hub_kills):
            hub.until_all_contribute(after=time.time())
            time.sleep(dice.uniform(0.5, 1.5))
            if number < kills:
                name = dice.choice([str(place) for place in range(workers)])
                done.workers.append(run.kill_worker(name))
            else:
                name = "hub"
                done.hub.append(run.kill_hub())
                time.sleep(HUB_WINDOW)
            say(f"{strategy}: {name} is killed, {number + 1} of {kills + hub_kills}")
        hub.until_all_contribute(after=time.time())
        done.paced = time.time()
        (folder / "hurry").touch()
        outcome = run.wait(600)
    if outcome.code != 0:
        raise CannotRun(f"the run of {strategy} failed: {outcome.why}")
    summary = json.loads((Path(str(outcome.folder)) / "summary.json").read_text())
    history = read_history(Path(str(outcome.folder)))
    yield from of_workers(strategy, workers, done, [v for v in history.versions if v.at < done.paced])
    steps = [[at for at in stamps(path) if at < done.paced] for path in sorted(folder.glob("steps-*"))]
    yield of_hub(strategy, done, steps)
    yield from accounts(strategy, summary, len(set(finals)))


class Watch:
    """Asks the hub how the run goes; a hub that is away is asked again."""

    def __init__(self, client: HubClient, workers: int) -> None:
        self._client, self._workers = client, workers

    def until_all_contribute(self, after: float) -> None:
        """Raises CannotRun when a version with all of them does not come."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for version in self._newest():
                contributing = sum(samples > 0 for samples in version["contributors"].values())
                if version["at"] > after and contributing == self._workers:
                    return
            time.sleep(0.05)
        raise CannotRun(f"the pool was not at full strength again in {PATIENCE:.0f} s")

    def _newest(self) -> list[dict[str, Any]]:
        try:
            return self._client.rounds(last=1)
        except (HubUnreachable, ConfigurationError):
            return []


def of_workers(strategy: str, workers: int, kills: Kills, versions: list[VersionRow]) -> Iterator[Row]:
    """Seconds to the next commit, and to full strength, after each kill of a worker."""
    normal = statistics.median(later.at - earlier.at for earlier, later in pairwise(versions))
    commits, full = [], []
    for at in kills.workers:
        view = max((v.view for v in versions if v.at <= at), default=0)
        after = [v for v in versions if v.at > at and v.view > view]
        commits.append(after[0].at - at - normal)
        full.append(next(v.at - at for v in after if sum(n > 0 for n in v.contributors.values()) == workers))
    note = f"beyond a normal round of {1000 * normal:.0f} ms; worst {max(commits):.2f} s"
    yield seconds(f"{strategy}, a worker is killed: next commit", commits, MOST_SECONDS, note)
    yield seconds(f"{strategy}, a worker is killed: full strength", full, None, f"worst {max(full):.2f} s")


def of_hub(strategy: str, kills: Kills, steps: list[list[float]]) -> Row:
    """The longest pause of any worker after each kill of the hub."""
    normal = statistics.median(b - a for times in steps for a, b in pairwise(times))
    pauses = [
        max(b - a for times in steps for a, b in pairwise(times) if b > at and a < at + HUB_WINDOW) - normal
        for at in kills.hub
    ]
    note = f"beyond a normal step of {1000 * normal:.0f} ms; worst {max(pauses):.2f} s"
    return seconds(f"{strategy}, the hub is killed: longest pause", pauses, MOST_SECONDS, note)


def accounts(strategy: str, summary: dict[str, Any], endings: int) -> Iterator[Row]:
    counted = summary["samples"]
    note = f"of {counted['total']:,}, by the hub's ledger"
    yield Row(f"{strategy}: samples lost", counted["missing"], "samples", most=0, note=note)
    yield Row(f"{strategy}: samples counted twice", counted["twice"], "samples", most=0, note=note)
    yield Row(f"{strategy}: models that workers ended with", endings, "models", most=1)


def seconds(name: str, values: list[float], most: float | None, note: str) -> Row:
    low, high = quartiles(values)
    return Row(
        name,
        statistics.median(values),
        "s",
        low=low,
        high=high,
        repetitions=len(values),
        most=most,
        note=note,
    )


def stamps(path: Path) -> list[float]:
    """When one worker, in all its incarnations, had done its steps."""
    data = path.read_bytes()
    return [moment for (moment,) in struct.iter_unpack("d", data[: len(data) // 8 * 8])]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=4, help="workers (4)")
    parser.add_argument("--kills", type=int, default=20, help="kills of a random worker, per strategy (20)")
    parser.add_argument("--hub-kills", type=int, default=5, help="kills of the hub, per strategy (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of victims and moments (0)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
