"""How long it takes until one that joins holds the state of the pool, and what that costs those who give it.

Three workers train under LocalSGD, without a round in the time of the benchmark. Again and again another one
joins and asks one of them, or all, in turn. On hosts, which are network namespaces with lines of limited
rate, the line of the one who joins is as fast as those of the three together; the limit is the state's
bytes over its rate. What it costs: the mean step until all of the state has come, the copy of it included,
beside that in the seconds before. Faster lines than the default cost these hosts, all on this machine, its
cores: filled by another process, lines of 100 Mbit/s make the same steps twice as slow. With `--host` all
within this host, where one donor gives alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import understood
from benchmarks.hosts import hosts, netlab, run_on_hosts
from benchmarks.launching import SCRIPTS, environment, need_linux
from benchmarks.rows import CannotRun, Row, against, main, quartiles, say
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions

DONORS = 3
MOST_SLOWER = 1.1
BEFORE_SECONDS = 2.0


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_linux()
    megabytes, repetitions = (4, 1) if given.quick else (given.megabytes, given.repetitions)
    settings = {
        "BENCH_DONORS": DONORS,
        "BENCH_REPETITIONS": repetitions,
        "BENCH_ELEMENTS": megabytes * 1_000_000 // 4,
    }
    if given.quick or given.host:
        say(f"{megabytes} MB on one host, {repetitions} times each")
        yield from of_host(on_this_host(settings))
        return
    say(f"{megabytes} MB between hosts at {given.net:g} Mbit/s, {repetitions} times each")
    with hosts(DONORS + 1, given.net):
        netlab("rate", str(DONORS + 1), f"{DONORS * given.net:g}mbit")
        found = run_on_hosts("healing.py", DONORS + 1, settings, seconds=600, expected=DONORS)
    yield from of_hosts(found, f"{DONORS + 1} hosts at {given.net:g} Mbit/s", DONORS * given.net)


def on_this_host(settings: dict[str, int]) -> list[Any]:
    """The donors are started by the local engine, who joins comes from elsewhere."""
    figures: list[Any] = []

    def line(worker: str, _: str, text: str) -> None:
        found = understood(text)
        if found is None:
            say(f"[{worker}] {text}")
        else:
            figures.append(found)

    with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as folder:
        env = environment(BENCH_FOLDER=folder, OMP_NUM_THREADS=1, **settings)
        options = LocalOptions(
            script=SCRIPTS / "healing.py",
            workers=DONORS,
            folder=Path(folder) / "run",
            env=env,
            max_restarts=0,
        )
        with LocalRun(options, lines=line) as run:
            joins = subprocess.run(
                [sys.executable, str(SCRIPTS / "healing.py")],
                env={
                    **os.environ,
                    **env,
                    "MANYHANDS_NAME": str(DONORS),
                    "MANYHANDS_HUB": run.url,
                    "MANYHANDS_RUN": "run",
                    "MANYHANDS_TOKEN": run.token,
                },
                stdout=subprocess.PIPE,
                text=True,
                timeout=600,
                check=False,
            )
            if joins.returncode != 0:
                raise CannotRun(f"who joins ended with {joins.returncode}; it said {joins.stdout[-500:]}")
            run.wait(60)
    return figures + [found for text in joins.stdout.splitlines() if (found := understood(text))]


def of_hosts(found: list[Any], where: str, megabits: float) -> Iterator[Row]:
    """`megabits`: the rate of the line of who joins."""
    one, all_ = ([each for each in found if each.get("asked") == asked] for asked in (1, DONORS))
    state = statistics.median(join["bytes"] for join in one)
    yield against(
        f"{state / 1e6:.3g} MB of state from {DONORS} donors, {where}",
        [join["ended"] - join["began"] for join in all_],
        "one donor",
        [join["ended"] - join["began"] for join in one],
        limit=state * 8 / megabits / 1e6,
        limited_by=f"line of {megabits:g} Mbit/s",
    )
    yield steps_beside_giving(where, all_, found)


def of_host(found: list[Any]) -> Iterator[Row]:
    """Who joins asks one member on its own host, however many there are."""
    joins = [each for each in found if "asked" in each]
    took = [join["ended"] - join["began"] for join in joins]
    state = statistics.median(join["bytes"] for join in joins)
    low, high = quartiles(took)
    yield Row(
        f"{state / 1e6:.3g} MB of state, one host",
        statistics.median(took),
        "s",
        low=low,
        high=high,
        repetitions=len(took),
    )
    yield steps_beside_giving("one host", joins, [each for each in found if each.get("name") == "0"])


def steps_beside_giving(where: str, joins: list[Any], found: list[Any]) -> Row:
    """The steps of donors in the time of each joining, beside those in the seconds before."""
    donors: dict[str, list[tuple[float, float]]] = {}
    for each in found:
        if "steps" in each:
            donors.setdefault(each["name"], []).extend(each["steps"])
    pairs = [(join, steps) for join in joins for steps in donors.values()]
    longest = [
        max(took for at, took in steps if at + took > join["began"] and at < join["given"])
        for join, steps in pairs
    ]
    return against(
        f"a donor's step while it gives, {where}",
        [mean_step(steps, join["began"], join["given"]) for join, steps in pairs],
        "before",
        [mean_step(steps, join["began"] - BEFORE_SECONDS, join["began"]) for join, steps in pairs],
        most_ratio=MOST_SLOWER,
        note=f"longest step, in which the state is copied: {1000 * statistics.median(longest):.0f} ms",
    )


def mean_step(steps: list[tuple[float, float]], since: float, until: float) -> float:
    """Of the steps that lie in this time, at least in part."""
    return statistics.mean(took for at, took in steps if at + took > since and at < until)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--net", type=float, default=25, metavar="MBIT", help="the donors' lines (25)")
    parser.add_argument("--host", action="store_true", help="all on this host")
    parser.add_argument("--megabytes", type=int, default=40, help="size of the state (40)")
    parser.add_argument("--repetitions", type=int, default=5, help="pairs to take the median of (5)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
