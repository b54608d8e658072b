"""What sharing costs where lines are slow: samples/s of four hosts, beside the same pool without sharing.

Hosts are network namespaces on this machine with lines of 100 Mbit/s, and share its cores. All train a
GPT of 10 M parameters, some steps with sharing and as many without, in turn: `StreamingDiLoCo` every 25
steps, in 4 bits, in one fragment, with the exchange in the background of the next steps. Beside it
DistributedDataParallel over gloo on the same lines. The ratio is of seconds a step, so 1/0.97 is what 97 %
of the samples/s take.

Then others do the same by their own local updates: torchft by its DiLoCo over gloo, in the background of as
many steps, in float32 (its 8 bits need a GPU); hivemind by its optimizer with local updates, in float16. Each
is installed from PyPI the first time, into an environment of its own; one that cannot be installed or run has
a row that says why. They run after ours, not in turns with it: the note tells what each keeps of the
samples/s that it has without sharing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.hosts import hosts, run_on_hosts, run_peer_on_hosts
from benchmarks.launching import need_torch
from benchmarks.peers import interpreter
from benchmarks.rows import CannotRun, Row, against, kept, main, say

ASKED = 1 / 0.97
HOSTS = 4
PEERS = {"torchft": "DiLoCo, float32", "hivemind": "local updates, float16"}


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_torch()
    model, repetitions = ("tiny", 2) if given.quick else ("10M", given.repetitions)
    settings = {
        "BENCH_MODEL": model,
        "BENCH_REPETITIONS": repetitions,
        "BENCH_EVERY": given.every,
        "BENCH_OVERLAP": given.overlap,
        "BENCH_FRAGMENTS": given.fragments,
    }
    say(f"{HOSTS} hosts at {given.rate:g} Mbit/s, {repetitions} rounds of {given.every} steps")
    with hosts(HOSTS, given.rate):
        found = run_on_hosts("low_bandwidth.py", HOSTS, settings, seconds=given.seconds)
    ours, plain, ddp = ([each[name] for each in found] for name in ("ours", "plain", "ddp"))
    what = f"step of {HOSTS} hosts at {given.rate:g} Mbit/s, StreamingDiLoCo every {given.every}, 4 bits"
    yield against(
        what, ours, "without sharing", plain, most_ratio=ASKED, note=f"{kept(plain, ours)} of the samples/s"
    )
    yield against(f"{what}, beside every step", ours, "DistributedDataParallel, gloo", ddp)
    for name in given.peers:
        yield beside(name, what, ours, settings, given)


def beside(
    name: str, what: str, ours: list[float], settings: dict[str, Any], given: argparse.Namespace
) -> Row:
    """Ours beside another library, or alone with the reason where that cannot run."""
    what = f"{what}, beside {name}"
    try:
        python = interpreter(name)
        say(f"{name}: the same")
        with hosts(HOSTS, given.rate):
            found = run_peer_on_hosts(python, f"peer_{name}.py", HOSTS, settings, seconds=given.seconds)
    except CannotRun as why:
        say(f"{name}: {why}")
        return Row(what, statistics.median(ours), "s", note=f"{name}: {str(why)[-160:]}")
    plain, shared = ([each[arm] for each in found] for arm in ("plain", "shared"))
    peer = f"{name} {found[0]['version']}, {PEERS[name]}"
    return against(
        what,
        ours,
        peer,
        shared,
        note=f"{name} {kept(plain, shared)} of the samples/s; torch {found[0]['torch']}",
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, default=100, help="of each line, in Mbit/s (100)")
    parser.add_argument("--every", type=int, default=25, help="local steps between two rounds (25)")
    parser.add_argument("--overlap", type=int, default=5, help="local steps that a round may take (5)")
    parser.add_argument("--fragments", type=int, default=1, help="pieces of the model, shared in turn (1)")
    parser.add_argument("--repetitions", type=int, default=5, help="rounds to take the median of (5)")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="libraries beside (all)")
    parser.add_argument("--seconds", type=float, default=900, help="give up on a run after so long (900)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
