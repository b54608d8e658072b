"""From the command to its end: `manyhands run -n 4` of a script that joins and leaves, against
`torchrun --nproc-per-node 4` of one that initialises gloo and leaves.

Whoever trains with PyTorch imports it on either side; the second row has our script import it too. A
repetition in which torchrun fails is left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping

from benchmarks.launching import SCRIPTS, environment, need_linux, need_torch
from benchmarks.rows import CannotRun, Row, against, main, say

ASKED = 1.2


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_linux()
    need_torch()
    workers, repetitions = (2, 1) if given.quick else (given.workers, given.repetitions)
    plain: list[float] = []
    with_torch: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as folder:
        command = [sys.executable, "-m", "manyhands", "run", "-n", str(workers), "--plain"]
        ours = [*command, str(SCRIPTS / "startup_ours.py")]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(workers)]
        peer = [*torchrun, "--standalone", str(SCRIPTS / "startup_torchrun.py")]
        for repetition in range(0 if given.quick else -1, repetitions):
            spent = [timed(ours, environment(), folder), timed(ours, environment(BENCH_TORCH=1), folder)]
            try:
                spent.append(timed(peer, environment(), folder))
            except CannotRun as why:
                say(f"left out: {why}")
                continue
            say(f"{repetition + 1} of {repetitions}: " + ", ".join(f"{seconds:.2f} s" for seconds in spent))
            if repetition >= 0:
                for kept, seconds in zip((plain, with_torch, theirs), spent, strict=True):
                    kept.append(seconds)
    if not theirs:
        raise CannotRun("torchrun failed every time, so there is no peer to compare with")
    name = f"start and end of {workers} workers"
    yield against(name, plain, "torchrun, gloo", theirs, most_ratio=ASKED)
    yield against(f"{name} that import torch", with_torch, "torchrun, gloo", theirs, most_ratio=ASKED)


def timed(command: list[str], settings: Mapping[str, str], folder: str) -> float:
    """Seconds that a command takes in a folder; raises CannotRun where it fails."""
    began = time.perf_counter()
    ended = subprocess.run(
        command,
        env={**os.environ, **settings},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    seconds = time.perf_counter() - began
    if ended.returncode != 0:
        raise CannotRun(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    return seconds


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=4, help="workers to start (4)")
    parser.add_argument("--repetitions", type=int, default=9, help="starts of each to take the median of (9)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
