"""Gradients averaged at every step: `EveryStep` against DistributedDataParallel over gloo.

Every worker holds the model twice and takes some steps with the one and some with the other, in turn, so
that a slow moment of the machine hits both. The limit is the step of as many workers side by side that
share nothing. All run on this host, with as many threads each as it has cores for them; with `--net` on four
hosts, which are network namespaces with lines of limited rate, in 8 bits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.hosts import hosts, run_on_hosts
from benchmarks.launching import need_linux, need_torch, run_workers
from benchmarks.rows import Row, against, main, say

ASKED = 0.9
ASKED_BETWEEN_HOSTS = 1 / 3.5
HOSTS = 4


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_linux()
    need_torch()
    if given.net is not None:
        yield from between_hosts(given)
        return
    model, repetitions, steps = ("tiny", 2, 2) if given.quick else ("10M", given.repetitions, given.steps)
    for workers in [2] if given.quick else given.workers:
        say(f"{workers} workers, {repetitions} times {steps} steps of each kind")
        settings = {"BENCH_MODEL": model, "BENCH_STEPS": steps, "BENCH_REPETITIONS": repetitions}
        found = run_workers("every_step.py", workers, settings, seconds=given.seconds)
        yield compared(f"step with {workers} workers, EveryStep", found, ASKED)


def between_hosts(given: argparse.Namespace) -> Iterator[Row]:
    model, repetitions = ("tiny", 2) if given.quick else ("10M", min(given.repetitions, 5))
    settings = {"BENCH_MODEL": model, "BENCH_STEPS": 2, "BENCH_REPETITIONS": repetitions, "BENCH_BITS": 8}
    say(f"{HOSTS} hosts at {given.net:g} Mbit/s, {repetitions} times 2 steps of each kind")
    with hosts(HOSTS, given.net):
        found = run_on_hosts("every_step.py", HOSTS, settings, seconds=given.seconds)
    name = f"step of {HOSTS} hosts at {given.net:g} Mbit/s, EveryStep in 8 bits"
    yield compared(name, found, ASKED_BETWEEN_HOSTS if given.net <= 100 else None)


def compared(name: str, found: list[Any], most_ratio: float | None) -> Row:
    """What the workers measured of steps that share, of the peer's, and of those that do not share."""
    return against(
        name,
        [each["ours"] for each in found],
        "DistributedDataParallel, gloo",
        [each["ddp"] for each in found],
        most_ratio=most_ratio,
        limit=statistics.median(each["plain"] for each in found),
        limited_by="without sharing",
        note=f"GPT of {found[0]['parameters'] / 1e6:.1f} M parameters",
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--net", type=float, metavar="MBIT", help="between 4 hosts with such lines")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], help="numbers of workers (2 4)")
    parser.add_argument("--repetitions", type=int, default=15, help="pairs to take the median of (15)")
    parser.add_argument("--steps", type=int, default=4, help="steps of each in one repetition (4)")
    parser.add_argument("--seconds", type=float, default=600, help="give up on a run after so long (600)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
