"""Averaging 100 MB of float32 over workers on this host, against gloo's all_reduce of as much.

Both run in the same processes, in turn; a repetition counts the slowest worker. Ours is the whole round,
from a contribution that is ready to a version that is committed. Over sockets, as between hosts, checksums
included; with `--host` through the memory that workers of one host share. Two limits: as many
bytes as each worker sends and takes in, moved through a plain connection over loopback by all workers at
once (`limit`), and the sums and copies alone, in memory (a row of its own).

With `--net` between four hosts, which are network namespaces with lines of limited rate, in float32, 8 and
4 bits; gloo sends float32. The limit is the line's, 2(n-1)/n of the bytes at its rate, headers not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator

from benchmarks.hosts import hosts, run_on_hosts
from benchmarks.launching import need_linux, need_torch, run_workers
from benchmarks.rows import Row, against, main, say

ASKED = 1.2
ASKED_ON_A_HOST = 1 / 3.5
ASKED_BETWEEN_HOSTS = {32: None, 8: 1 / 3.6, 4: 1 / 7}
MOST_OVER_THE_LINE = 1.08


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_linux()
    need_torch()
    if given.net is not None:
        yield from between_hosts(given)
    else:
        yield from on_one_host(given)


def on_one_host(given: argparse.Namespace) -> Iterator[Row]:
    megabytes, repetitions = (2, 3) if given.quick else (given.megabytes or 100, given.repetitions or 40)
    way = "shared memory" if given.host else "sockets"
    for workers in [2] if given.quick else given.workers:
        say(f"{workers} workers, {megabytes} MB, {repetitions} times")
        settings = {
            "BENCH_BYTES": megabytes * 1_000_000,
            "BENCH_REPETITIONS": repetitions,
            "MANYHANDS_SHARED_MEMORY": int(given.host),
        }
        found = run_workers("exchange.py", workers, settings, seconds=given.seconds)
        arms = {name: [each[name] for each in found] for name in found[0]}
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


def between_hosts(given: argparse.Namespace) -> Iterator[Row]:
    number = 4
    for rate in given.net or (100.0, 1000.0):
        megabytes = 1 if given.quick else given.megabytes or (10 if rate <= 100 else 50)
        line = 2 * (number - 1) / number * megabytes * 8 / rate
        for bits in [8] if given.quick else ASKED_BETWEEN_HOSTS:
            say(f"{number} hosts, {rate:g} Mbit/s, {megabytes} MB in {bits} bits")
            settings = {
                "BENCH_BYTES": megabytes * 1_000_000,
                "BENCH_REPETITIONS": 2 if given.quick else given.repetitions or 9,
                "BENCH_BITS": bits,
                "BENCH_BETWEEN_HOSTS": 1,
            }
            with hosts(number, rate):
                found = run_on_hosts("exchange.py", number, settings, seconds=given.seconds)
            ours, gloo = ([each[name] for each in found] for name in ("ours", "gloo"))
            yield against(
                f"{megabytes} MB over {number} hosts at {rate:g} Mbit/s, {bits} bits",
                ours,
                "gloo all_reduce, float32",
                gloo,
                most_ratio=ASKED_BETWEEN_HOSTS[bits] if rate <= 100 else None,
                limit=line * bits / 32,
                limited_by="line",
                most=line * MOST_OVER_THE_LINE if bits == 32 and rate <= 100 else None,
                note=f"{statistics.median(ours) / line * 32 / bits:.3f}× the line's limit",
            )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", action="store_true", help="through the memory of one host, not sockets")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], help="numbers of workers (2 4)")
    parser.add_argument(
        "--net", type=float, nargs="*", metavar="MBIT", help="between 4 hosts with lines of so many Mbit/s"
    )
    parser.add_argument("--megabytes", type=int, help="float32 to average (100; between hosts 10 or 50)")
    parser.add_argument("--repetitions", type=int, help="pairs to take the median of (40; between hosts 9)")
    parser.add_argument("--seconds", type=float, default=300, help="give up on a run after so long (300)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
