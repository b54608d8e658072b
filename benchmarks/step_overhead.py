"""What a pool of one costs: the plain training loop against the same loop with manyhands in it.

Both loops live in one process and take steps in turn; a repetition is `--steps` steps of each, so that a
slow moment of the machine hits both. The model is a GPT of 3 M parameters, computed by one thread, which
need not wait for others on a busy machine; CPU time hardly minds one at all. DiLoCo applies its outer step
once in a repetition.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmarks.launching import need_torch
from benchmarks.rows import Row, against, main, say

ASKED = 1.01
Spent = tuple[float, float]
"""Seconds by the clock, and seconds of CPU."""


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_torch()
    for name in [name for name in os.environ if name.startswith("MANYHANDS_")]:
        del os.environ[name]  # a pool of one, wherever this is started from
    repetitions, steps = (2, 2) if given.quick else (given.repetitions, given.steps)
    for strategy in ("EveryStep", "DiLoCo"):
        yield from compare(strategy, "tiny" if given.quick else "3M", repetitions, steps)


def compare(strategy: str, model: str, repetitions: int, steps: int) -> Iterator[Row]:
    import torch

    import manyhands as mh
    from benchmarks.gpt import SIZES, build, step, text

    torch.set_num_threads(1)
    size = SIZES[model]
    data = torch.utils.data.TensorDataset(text(size, size.batch * (repetitions + 1) * steps))
    plain_model, plain_optimizer = build(size)
    plain_batches = iter(torch.utils.data.DataLoader(data, size.batch, shuffle=True))
    our_model, our_optimizer = build(size)
    pool = mh.join()
    our_batches = iter(pool.partition(data, batch_size=size.batch))
    chosen = mh.EveryStep() if strategy == "EveryStep" else mh.DiLoCo(every=steps)
    with ExitStack() as stack:
        shared = stack.enter_context(pool.share(our_model, our_optimizer, chosen))

        def plain() -> None:
            (batch,) = next(plain_batches)
            step(plain_model, plain_optimizer, batch).item()

        def ours() -> None:
            (batch,) = next(our_batches)
            shared.log(loss=step(our_model, our_optimizer, batch))

        alternate(plain, ours, steps)  # both are warm from here on
        pairs = []
        for repetition in range(repetitions):
            pairs.append(alternate(plain, ours, steps))
            (plain_wall, _), (our_wall, _) = pairs[-1]
            say(f"{strategy}: {repetition + 1} of {repetitions}, {our_wall / plain_wall:.4f}×")
    for clock, name in enumerate(("step in a pool of one", "CPU time of it")):
        yield against(
            f"{name}, {strategy}",
            [ours[clock] for _, ours in pairs],
            "the plain loop",
            [plain[clock] for plain, _ in pairs],
            most_ratio=ASKED,
            note=f"GPT {model}",
        )


def alternate(plain: Callable[[], None], ours: Callable[[], None], steps: int) -> tuple[Spent, Spent]:
    """What one step of each takes, over so many steps; who goes first changes from step to step."""
    spent = {plain: (0.0, 0.0), ours: (0.0, 0.0)}
    for number in range(steps):
        for one in (plain, ours) if number % 2 else (ours, plain):
            began, busy = time.perf_counter(), time.process_time()
            one()
            wall, cpu = spent[one]
            spent[one] = wall + time.perf_counter() - began, cpu + time.process_time() - busy
    wall, cpu = spent[plain]
    our_wall, our_cpu = spent[ours]
    return (wall / steps, cpu / steps), (our_wall / steps, our_cpu / steps)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, default=11, help="pairs to take the median of (11)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each in one repetition (20)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
