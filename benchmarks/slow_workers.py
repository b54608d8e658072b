"""What one slow worker costs the pool: samples/s of four, one of them four times slower, beside the ideal.

The ideal is the sum of speeds: what all would do without ever waiting for each other, by the time that each
spent in its steps in this same run. Steps are paced, so that the workers do not wait for the cores of this
machine. The ratio is of seconds a sample, so 1/0.9 is what 90 % of the ideal take. Beside it
DistributedDataParallel over gloo, where all go at the pace of the slowest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.launching import need_linux, need_torch, run_workers
from benchmarks.rows import Row, against, kept, main, say

ASKED = 1 / 0.9
WORKERS, SLOWER = 4, 4.0
ARMS = {
    "seconds": "DiLoCo(every=seconds({seconds:g}))",
    "steps": "DiLoCo(every={every})",
    "deadline": "DiLoCo(every={every}, close=Deadline({deadline:g}))",
}


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_linux()
    need_torch()
    repetitions, length = (1, 6.0) if given.quick else (given.repetitions, given.length)
    speed = (WORKERS - 1 + 1 / SLOWER) / given.step
    settings = {
        "BENCH_STEP": given.step,
        "BENCH_SLOWER": SLOWER,
        "BENCH_SECONDS": given.seconds,
        "BENCH_EVERY": given.every,
        "BENCH_DEADLINE": given.deadline,
        "BENCH_BATCHES": int(speed * length),
    }
    spent: dict[str, list[float]] = {arm: [] for arm in (*ARMS, "ddp")}
    ideal: dict[str, list[float]] = {arm: [] for arm in spent}
    for repetition in range(repetitions):
        for arm in spent:
            script = "slow_workers_ddp.py" if arm == "ddp" else "slow_workers.py"
            found = run_workers(script, WORKERS, {**settings, "BENCH_STRATEGY": arm}, 60 + 10 * length)
            took, without = seconds_a_sample(found)
            spent[arm].append(took)
            ideal[arm].append(without)
            say(f"{repetition + 1} of {repetitions}, {arm}: {100 * without / took:.1f} % of the ideal")
    what = f"sample of {WORKERS} workers, one {SLOWER:g}× slower"
    for arm, name in ARMS.items():
        name = name.format(**vars(given))
        yield against(
            f"{what}, {name}",
            spent[arm],
            "the sum of speeds",
            ideal[arm],
            most_ratio=ASKED,
            note=f"{kept(ideal[arm], spent[arm])} of the ideal; steps of {given.step:g} s",
        )
    yield against(
        f"{what}, beside every step",
        spent["seconds"],
        "DistributedDataParallel, gloo",
        spent["ddp"],
        note=f"DistributedDataParallel {kept(ideal['ddp'], spent['ddp'])} of the ideal",
    )


def seconds_a_sample(found: list[dict[str, Any]]) -> tuple[float, float]:
    """What a sample took the pool, and what it would have taken if nobody had ever waited."""
    wall = max(each["wall"] for each in found)
    speed = sum(each["steps"] / each["busy"] for each in found)
    return wall / sum(each["steps"] for each in found), 1 / speed


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=float, default=0.05, help="seconds of a step of the fast ones (0.05)")
    parser.add_argument("--seconds", type=float, default=2.0, help="between two rounds, by time (2)")
    parser.add_argument("--every", type=int, default=40, help="steps between two rounds, by count (40)")
    parser.add_argument("--deadline", type=float, default=0.1, help="seconds that a round waits (0.1)")
    parser.add_argument("--repetitions", type=int, default=5, help="runs to take the median of (5)")
    parser.add_argument("--length", type=float, default=30.0, help="seconds of a run, ideally (30)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
