"""Memory of a worker beyond the plain loop, in bytes of the model's parameters.

Each figure is the most a fresh process ever had resident (VmHWM, as Linux counts it), less the same of a
process that runs the plain loop and joins and leaves the pool; so what the libraries take by themselves
is in neither. Nor is what a worker reads in the memory of the others on its host, which is theirs. One row
counts from the start, when one worker gives its state to all others and they take it; the other counts
from there on. The model is a GPT of 43 M parameters with few activations.

What fragments and overlap add is counted likewise, beyond `DiLoCo` in place of the plain loop: the same
outer optimizer and encoding, shared whole while the steps wait. `StreamingDiLoCo` in 4 fragments, each in the
background of one step, may take one fragment more, a quarter of the parameters. In float32 as on one host; in
4 bits as between hosts, where alone slices are encoded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from benchmarks.launching import need_linux, need_torch, run_workers
from benchmarks.rows import Row, main, quartiles, say

ASKED = {"EveryStep": 2.0, "DiLoCo": 4.0}
FRAGMENTS = 4


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_linux()
    need_torch()
    model, workers = ("tiny", 1) if given.quick else ("40M", given.workers)

    @cache
    def figures(strategy: str, on_a_host: bool) -> list[dict[str, Any]]:
        say(f"{strategy}: {workers} workers")
        settings = {
            "BENCH_MODEL": model,
            "BENCH_STRATEGY": strategy,
            "MANYHANDS_SHARED_MEMORY": int(on_a_host),
        }
        return run_workers("memory.py", workers, settings, seconds=300)

    for strategy, most in [("EveryStep", 2.0)] if given.quick else ASKED.items():
        yield from beyond("the plain loop", figures("plain", True), strategy, figures(strategy, True), most)
    for encoding, on_a_host in [] if given.quick else [("", True), (" in 4 bits", False)]:
        whole, streaming = (f"{name}{encoding}" for name in ("DiLoCo", "StreamingDiLoCo"))
        without, found = (figures(name, on_a_host) for name in (whole, streaming))
        yield from beyond(whole, without, streaming, found, 1 / FRAGMENTS)


def beyond(
    peer: str, without: list[dict[str, Any]], strategy: str, found: list[dict[str, Any]], most: float
) -> Iterator[Row]:
    """The worst worker's memory beyond the peer's median."""
    for when, counted in (("from then on", "later"), ("with the start", "peak")):
        yield row(f"{strategy}, beyond {peer}, {when}", counted, peer, without, found, most)


def row(
    name: str,
    counted: str,
    peer: str,
    without: list[dict[str, Any]],
    found: list[dict[str, Any]],
    most: float,
) -> Row:
    size = found[0]["bytes"]
    alone = statistics.median(each[counted] for each in without)
    ours = [each[counted] for each in found]
    low, high = quartiles([one / alone for one in ours])
    return Row(
        name=name,
        value=(max(ours) - alone) / size,
        unit="× parameters",
        peer=peer,
        peer_value=alone / size,
        ratio=max(ours) / alone,
        low=low,
        high=high,
        repetitions=len(ours),
        most=most,
        note=f"{len(ours)} workers, parameters {size / 1e6:.1f} MB, peak {max(ours) / 1e6:.0f} MB",
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=4, help="workers; the worst of them counts (4)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
