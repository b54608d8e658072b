"""Gradients averaged at every step: `EveryStep` against DistributedDataParallel over gloo.

Every worker holds the model twice and takes some steps with the one and some with the other, in turn, so
that a slow moment of the machine hits both. The limit is the step of as many workers side by side that
share nothing. All run on this host, with as many threads each as it has cores for them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator

from benchmarks.launching import need_linux, need_torch, run_workers
from benchmarks.rows import Row, against, main, say

ASKED = 1.15


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_linux()
    need_torch()
    model, repetitions, steps = ("tiny", 2, 2) if given.quick else ("10M", given.repetitions, given.steps)
    for workers in [2] if given.quick else given.workers:
        say(f"{workers} workers, {repetitions} times {steps} steps of each kind")
        settings = {"BENCH_MODEL": model, "BENCH_STEPS": steps, "BENCH_REPETITIONS": repetitions}
        found = run_workers("every_step.py", workers, settings, seconds=given.seconds)
        yield against(
            f"step with {workers} workers, EveryStep",
            [each["ours"] for each in found],
            "DistributedDataParallel, gloo",
            [each["ddp"] for each in found],
            most_ratio=ASKED,
            limit=statistics.median(each["plain"] for each in found),
            limited_by="without sharing",
            note=f"GPT of {found[0]['parameters'] / 1e6:.1f} M parameters",
        )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], help="numbers of workers (2 4)")
    parser.add_argument("--repetitions", type=int, default=15, help="pairs to take the median of (15)")
    parser.add_argument("--steps", type=int, default=4, help="steps of each in one repetition (4)")
    parser.add_argument("--seconds", type=float, default=600, help="give up on a run after so long (600)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
