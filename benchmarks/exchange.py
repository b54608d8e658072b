"""Averaging 100 MB of float32 over workers on this host, against gloo's all_reduce of as much.

Both run in the same processes, in turn; a repetition counts the slowest worker. Ours is the whole round,
from a contribution that is ready to a version that is committed. Over sockets, as between hosts, checksums
included; with `--host` through the memory that workers of one host share. Two limits: as many
bytes as each worker sends and takes in, moved through a plain connection over loopback by all workers at
once (`limit`), and the sums and copies alone, in memory (a row of its own).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator

from benchmarks.launching import need_linux, need_torch, run_workers
from benchmarks.rows import Row, against, main, say

ASKED = 1.2
ASKED_ON_A_HOST = 1 / 3.5


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_linux()
    need_torch()
    megabytes, repetitions = (2, 3) if given.quick else (given.megabytes, given.repetitions)
    for workers in [2] if given.quick else given.workers:
        say(f"{workers} workers, {megabytes} MB, {repetitions} times")
        settings = {
            "BENCH_BYTES": megabytes * 1_000_000,
            "BENCH_REPETITIONS": repetitions,
            "MANYHANDS_SHARED_MEMORY": int(given.host),
        }
        found = run_workers("exchange.py", workers, settings, seconds=given.seconds)
        arms = {name: [each[name] for each in found] for name in found[0]}
        way = "shared memory" if given.host else "sockets"
        yield against(
            f"{megabytes} MB averaged over {workers} workers, {way}",
            arms["ours"],
            "gloo all_reduce",
            arms["gloo"],
            most_ratio=ASKED_ON_A_HOST if given.host else ASKED,
            limit=statistics.median(arms["loopback"]),
            limited_by="loopback",
        )
        yield against(
            f"{megabytes} MB averaged over {workers} workers, {way}, beside memory",
            arms["ours"],
            "sums and copies in memory",
            arms["memory"],
            limit=statistics.median(arms["memory"]),
            limited_by="memory",
        )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", action="store_true", help="through the memory of one host, not sockets")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], help="numbers of workers (2 4)")
    parser.add_argument("--megabytes", type=int, default=100, help="float32 to average (100)")
    parser.add_argument("--repetitions", type=int, default=40, help="pairs to take the median of (40)")
    parser.add_argument("--seconds", type=float, default=300, help="give up on a run after so long (300)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
