"""What a storm costs: every 5 s a worker is killed, stopped, or has a bit turned over, or the hub is killed.

A small GPT on Tiny Shakespeare, its steps paced by a sleep, so that workers do not wait for the cores of this
host, as they would not on machines of their own. By `manyhands chaos`: the same training left alone, then in
the storm. Which workers could work is the injector's word; samples, digests and moments of versions are what
the workers wrote down; the validation loss is that of the model with which the first one ended.

Beside EveryStep, on the same model and pace and under the kills of the same schedule alone: torchrun, which
starts all workers again from a checkpoint of every 20 steps, and torchft with whoever is there. What counts
there is what they still hold at the end of the storm: steps gone back to a checkpoint do not.

Goodput is the samples/s that count, over those undisturbed, over the share of workers that could work: a
killed one cannot until its successor has imported what it needs and built its model, ours as theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.launching import SCRIPTS, environment, need_linux, need_torch
from benchmarks.rows import CannotRun, Row, main, say
from benchmarks.storm_peers import PEERS, Standing, Weather, standing
from manyhands.cli.words import duration
from manyhands.core.storm import draw

LEAST = {"EveryStep": 80.0, "DiLoCo": 90.0}
KINDS = ("kill", "stop", "corrupt", "kill-hub")
BATCH = 8  # of benchmarks.characters
STEP = 1.1  # of the pace, at least, is what a step takes: so the training outlasts the storm
LONGEST = 4.0  # times the storm's own length


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_linux()
    need_torch()
    from benchmarks.characters import TEXT

    if not TEXT.exists():
        raise CannotRun(f"it needs {TEXT.name} in shared/data/text beside this repository")
    if given.quick:
        given.workers, given.every, given.seconds, given.calm = 2, 2.0, 10.0, 3.0
        given.strategies, given.peers = ["EveryStep"], given.peers and ["torchrun"]
    shares = {}
    for strategy in given.strategies:
        found = stormed(strategy, given)
        shares[strategy] = 100 * found["of_capacity"]
        yield from rows(strategy, found, given.seconds)
    drawn = draw(given.seed, KINDS, given.every, given.seconds, given.lease)
    kills = [fault for fault in drawn if fault.kind == "kill"]
    weather = Weather(given.workers, given.pace, given.lease, given.calm, given.seconds, kills)
    for name in given.peers:
        yield beside(name, shares, weather)


def stormed(strategy: str, given: argparse.Namespace) -> dict[str, Any]:
    """What `manyhands chaos` found, with the validation losses of both trainings."""
    samples = int(given.seconds / given.pace / STEP) * given.workers * BATCH
    say(f"{strategy}: {samples:,} samples undisturbed, then in a storm of {given.seconds:.0f} s")
    with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as name:
        folder = Path(name) / "run"
        command = [sys.executable, "-m", "manyhands", "chaos", "-n", given.workers, "--folder", folder]
        command += ["--faults", ",".join(KINDS), "--seed", given.seed, "--lease", given.lease]
        command += ["--every", given.every, "--seconds", given.seconds, SCRIPTS / "storm.py"]
        done = subprocess.run(
            [str(part) for part in command],
            env={
                **os.environ,
                **environment(BENCH_STRATEGY=strategy, BENCH_SAMPLES=samples, BENCH_PACE=given.pace),
            },
            capture_output=True,
            text=True,
            timeout=120 + 2 * LONGEST * given.seconds,
            check=False,
        )
        say(done.stdout)
        losses = [path / "chaos" / "validation" for path in (folder, folder.with_name("run-undisturbed"))]
        if not all(path.exists() for path in losses):
            said = (done.stderr or done.stdout).strip()[-400:]
            raise CannotRun(f"a training under {strategy} did not come to its end: {said}")
        found: dict[str, Any] = json.loads((folder / "chaos.json").read_text())
        found["validation"] = [float(path.read_text()) for path in losses]
        return found


def rows(strategy: str, found: dict[str, Any], seconds: float) -> Iterator[Row]:
    samples, digests, wait = found["samples"], found["digests"], found["recovery"]
    faults = ", ".join(f"{times} × {kind}" for kind, times in found["done"].items())
    yield Row(
        f"{strategy}: goodput of what could work",
        100 * found["of_capacity"],
        "%",
        least=LEAST[strategy],
        note=f"{found['goodput']:.0f} of {found['undisturbed']:.0f} samples/s, "
        f"{100 * found['capacity']:.1f} % could work; "
        f"{seconds * (1 - found['ratio']):.0f} of {seconds:.0f} s lost; {faults}",
    )
    by = f"of {samples['total']:,}, by what the workers wrote down"
    yield Row(f"{strategy}: samples lost", samples["lost"] + samples["unreached"], "samples", most=0, note=by)
    yield Row(f"{strategy}: samples doubled", samples["twice"], "samples", most=0, note=by)
    flipped = found["flipped"]
    yield Row(
        f"{strategy}: versions with digests apart",
        digests["apart"] + digests["unwitnessed"],
        "versions",
        most=0,
        note=f"of {digests['versions']}, but for {flipped['shown']} flipped bits that came to a digest, for "
        f"{digests['longest']} version at most; {flipped['found']} of {flipped['done']} were found",
    )
    yield Row(f"{strategy}: models that workers ended with", digests["results"], "models", most=1)
    ours, calm = found["validation"]
    yield Row(
        f"{strategy}: validation loss",
        ours,
        "nats",
        peer="undisturbed",
        peer_value=calm,
        ratio=ours / calm,
        most_ratio=1.02,
        note="after equally many samples",
    )
    if wait is not None:
        worst = f"worst {duration(wait['worst'])}"
        yield Row(f"{strategy}: longest wait for a version after a fault", wait["median"], "s", note=worst)


def beside(name: str, shares: dict[str, float], weather: Weather) -> Row:
    """EveryStep, or what there is of ours, beside another library, or the reason why that cannot run."""
    strategy, ours = next(iter(shares.items()))
    what = f"{strategy}: goodput of what could work, beside {name}"
    try:
        found = standing(name, weather)
    except CannotRun as why:
        say(f"{name}: {why}")
        return Row(what, ours, "%", note=f"{name}: {why}")
    theirs = 100 * found.share
    return Row(
        what,
        ours,
        "%",
        peer=PEERS[name][1],
        peer_value=theirs,
        ratio=ours / theirs if theirs > 0 else None,
        note=kept(found, weather),
    )


def kept(found: Standing, weather: Weather) -> str:
    """What became of a peer, in words."""
    seconds = weather.seconds
    return (
        f"kills alone, {found.kills}: {found.storm * seconds / weather.workers:.0f} of "
        f"{found.undisturbed * seconds / weather.workers:.0f} steps kept, "
        f"{seconds * (1 - found.storm / found.undisturbed):.0f} of {seconds:.0f} s lost, "
        f"{100 * found.capacity:.1f} % could work"
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=4, help="workers (4)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two faults, about (5)")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long a storm lasts (300)")
    parser.add_argument(
        "--calm", type=float, default=30.0, help="seconds that a peer is left alone first (30)"
    )
    parser.add_argument(
        "--pace", type=float, default=0.1, help="seconds that a worker sleeps each step (0.1)"
    )
    parser.add_argument(
        "--lease", type=float, default=3.0, help="seconds after which who is silent is lost (3)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed is the same storm (0)")
    parser.add_argument("--strategies", nargs="+", choices=LEAST, default=list(LEAST), help="ours (both)")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), help="libraries beside (all)"
    )


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
