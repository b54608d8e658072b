"""Many simulations, on all cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from manyhands.testing.plan import Violation
from manyhands.testing.simulation import simulate

TOLD = 100


def broken_seeds(first: int, count: int) -> Iterator[tuple[int, int | None]]:
    """How many runs are done, now and then, and the seed of one in which something broke, or None."""
    cores = os.cpu_count() or 1
    reading, writing = os.pipe()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(first + core), str(first + count), str(cores)],
            stdout=writing,
        )
        for core in range(cores)
    ]
    os.close(writing)
    done = 0
    try:
        with open(reading) as lines:  # which are so short that those of two processes do not mix
            for line in lines:
                more, *broken = map(int, line.split())
                done += more
                yield done, broken[0] if broken else None
        assert done == count, f"a process of simulations has ended after {done} of {count} in all"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def story(seed: int) -> str:
    """What breaks in the run of this seed, and how to see it again."""
    try:
        simulate(seed)
    except Violation as broken:
        return f"{broken}\nagain: python -m manyhands.testing.simulation {seed}"
    return f"nothing breaks with seed {seed}"


def _run(first: int, until: int, step: int) -> None:
    """One process's part: a line for each `TOLD` runs, and for each that broke."""
    quiet = 0
    for seed in range(first, until, step):
        quiet, broken = quiet + 1, False
        try:
            simulate(seed)
        except Violation:
            broken = True
        if broken or quiet == TOLD or seed + step >= until:
            print(quiet, *[seed] * broken, flush=True)
            quiet = 0


if __name__ == "__main__":
    _run(*map(int, sys.argv[1:]))
