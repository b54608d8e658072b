"""What each strategy makes of the same training, and how many bytes a worker sends for it.

A GPT of characters (3 layers, 4 heads, 96 wide, context 64) on nine tenths of Tiny Shakespeare: 4 workers in
threads of one process, batches of 8, 1,500 steps, AdamW at 2e-3 with 50 steps of warm-up and a cosine to a
tenth, gradients clipped at 1.0; or Muon at the same rate for the matrices of the layers. Drivers, outer
optimizers and encodings are the real ones; only the network is missing. Loss is that of the last tenth, the
mean over seeds; bytes are what one worker sends. Both beside plain data parallel training in float32.
`--only` names rows to run; `--recipe` tries a strategy of your own, `--inner` with which inner optimizer.
Each training takes one core: `--jobs` of them run at once.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.launching import ROOT, need_torch
from benchmarks.rows import CannotRun, Row, main, say

TEXT = ROOT.parent / "shared" / "data" / "text" / "tinyshakespeare.txt"
WORKERS, BATCH, STEPS = 4, 8, 1500
PEAK, FLOOR, WARM_UP, CLIP = 2e-3, 2e-4, 50, 1.0
PLAIN = "data parallel, float32"
INNER = ("AdamW", "Muon")


class Recipe(NamedTuple):
    """A strategy as it is written, and how much of the loss of plain training is asked of it at most.

    `inner`: what trains the matrices of the layers; all else is AdamW's.
    """

    name: str
    strategy: str
    most_loss: float | None = None
    inner: str = INNER[0]


RECIPES = (
    Recipe(PLAIN, "EveryStep()"),
    Recipe("every step, 8 bits", "EveryStep(encode=chain(Quantize(8)))", most_loss=1.003),
    Recipe("every step, 4 bits", "EveryStep(encode=chain(ErrorFeedback(), Quantize(4)))"),
    Recipe("LocalSGD(10)", "LocalSGD(10)"),
    Recipe("DiLoCo(10)", "DiLoCo(10, Nesterov(0.7, 0.9))"),
    Recipe("DiLoCo(25)", "DiLoCo(25, Nesterov(0.8, 0.8))"),
    Recipe(
        "DiLoCo(25), 4 bits",
        "DiLoCo(25, Nesterov(0.8, 0.8), encode=chain(ErrorFeedback(), Quantize(4)))",
    ),
    Recipe(
        "DiLoCo(50), 4 bits", "DiLoCo(50, Nesterov(0.9, 0.8), encode=chain(ErrorFeedback(), Quantize(4)))"
    ),
    Recipe("StreamingDiLoCo(25)", "StreamingDiLoCo(25, Nesterov(0.8, 0.8), fragments=4, overlap=1)"),
    Recipe("SparseLoCo(25)", "SparseLoCo(25)"),
    Recipe("data parallel, Muon", "EveryStep()", inner="Muon"),
    Recipe(
        "DiLoCo(30), 4 bits, Muon",
        "DiLoCo(30, Nesterov(0.8, 0.8), encode=chain(ErrorFeedback(), Quantize(4)))",
        most_loss=1.025,
        inner="Muon",
    ),
    Recipe(
        "DiLoCo(80), 2 bits, Muon",
        "DiLoCo(80, Nesterov(0.9, 0.8), encode=chain(ErrorFeedback(), Quantize(2)))",
        most_loss=1.05,
        inner="Muon",
    ),
)


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_torch()
    if not TEXT.exists():
        raise CannotRun(f"it needs {TEXT.name} in shared/data/text beside this repository")
    steps, seeds = (20, 1) if given.quick else (given.steps, given.seeds)
    recipes = [Recipe(f"{text}, {given.inner}", text, inner=given.inner) for text in given.recipe]
    recipes += [recipe for recipe in RECIPES if not given.only or recipe.name in given.only]
    plain: tuple[float, float] | None = None
    for recipe, found in trained(recipes[:2] if given.quick else recipes, steps, seeds, given.jobs):
        loss, sent = statistics.mean(loss for loss, _ in found), found[0][1]
        say(f"{recipe.name}: {loss:.4f}, {sent / 1e6:.2f} MB")
        plain = (loss, sent) if recipe.name == PLAIN else plain
        yield row(recipe, [loss for loss, _ in found], sent, plain)


def trained(
    recipes: Sequence[Recipe], steps: int, seeds: int, jobs: int
) -> Iterator[tuple[Recipe, list[tuple[float, float]]]]:
    """Each recipe with what `train` gives for its seeds, in order."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        begun = [
            (recipe, [pool.submit(train, recipe, steps, seed) for seed in range(seeds)]) for recipe in recipes
        ]
        try:
            for recipe, runs in begun:
                yield recipe, [run.result() for run in runs]
        finally:
            pool.shutdown(cancel_futures=True)


def row(recipe: Recipe, losses: list[float], sent: float, plain: tuple[float, float] | None) -> Row:
    loss = statistics.mean(losses)
    fewer = plain[1] / sent if plain is not None else None
    return Row(
        name=recipe.name,
        value=loss,
        unit="nats",
        peer=PLAIN if plain is not None else None,
        peer_value=plain[0] if plain is not None else None,
        ratio=loss / plain[0] if plain is not None else None,
        low=min(losses) / plain[0] if plain is not None else None,
        high=max(losses) / plain[0] if plain is not None else None,
        repetitions=len(losses),
        most_ratio=recipe.most_loss,
        note=f"{sent / 1e6:.2f} MB" + (f", {fewer:.0f}× fewer" if fewer is not None else ""),
    )


def train(recipe: Recipe, steps: int, seed: int) -> tuple[float, float]:
    """Validation loss, and the bytes that a worker has sent, after so many steps."""
    import numpy as np
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    import manyhands as mh
    from benchmarks.threads import Place, Pool
    from manyhands.worker.driving import driver_for

    names = {name: getattr(mh, name) for name in mh.__all__}
    strategy: Any = eval(recipe.strategy, names)  # written in this file, or by who calls it
    torch.set_num_threads(1)
    text = np.frombuffer(Path(TEXT).read_bytes(), np.uint8)
    letters, codes = np.unique(text, return_inverse=True)
    codes = codes.astype(np.int64)
    cut = len(codes) * 9 // 10
    torch.manual_seed(seed)
    initial = gpt(len(letters)).state_dict()

    def work(place: Place) -> float:
        model = gpt(len(letters))
        model.load_state_dict(initial)
        optimizers = optimizers_of(model, recipe.inner)
        schedules = [LambdaLR(each, lambda step: rate(step, steps)) for each in optimizers]
        driver = driver_for(model, optimizers, strategy)
        place.share(driver, strategy)
        chosen = np.random.default_rng([seed, place.rank])
        for _ in range(steps):
            batch = sample(codes[:cut], chosen, BATCH)
            model.zero_grad()
            model(batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            for each in (*optimizers, *schedules):
                each.step()
        while driver.flush() is not None:
            pass
        driver.detach()
        return validation(model, codes[cut:]) if place.rank == 0 else math.nan

    pool = Pool(WORKERS)
    losses = pool.run(work)
    return losses[0], float(pool.places[0].sent)


def optimizers_of(model: Any, inner: str) -> list[Any]:
    """Those of the script, in the order in which they step."""
    import torch

    if inner == INNER[0]:
        return [torch.optim.AdamW(model.parameters(), PEAK)]
    if not hasattr(torch.optim, "Muon"):
        raise CannotRun(f"torch {torch.__version__} has no Muon; leave such rows out with --only")
    matrices = {p for p in model.body.parameters() if p.ndim == 2}
    muon = torch.optim.Muon(
        [p for p in model.parameters() if p in matrices],
        PEAK,
        weight_decay=0.01,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, torch.optim.AdamW([p for p in model.parameters() if p not in matrices], PEAK)]


def rate(step: int, steps: int) -> float:
    """The learning rate as a part of its peak."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(steps - WARM_UP, 1)
    least = FLOOR / PEAK
    return least + (1 - least) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def gpt(letters: int) -> Any:
    """The model of the issue's trial, on the benchmarks' own GPT."""
    from benchmarks.gpt import GPT, Size

    return GPT(Size(96, 3, 64, BATCH), letters, heads=4)


def sample(codes: Any, chosen: Any, batch: int) -> Any:
    import numpy as np
    import torch

    starts = chosen.integers(0, len(codes) - 65, batch)
    return torch.from_numpy(np.stack([codes[start : start + 65] for start in starts]))


def validation(model: Any, codes: Any) -> float:
    """The mean loss over all of the text, in windows that do not overlap."""
    import numpy as np
    import torch

    windows = np.stack([codes[start : start + 65] for start in range(0, len(codes) - 65, 64)])
    with torch.no_grad():
        return statistics.mean(
            float(model(torch.from_numpy(windows[i : i + 64]))) for i in range(0, len(windows) // 64 * 64, 64)
        )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each worker ({STEPS})")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions to take the mean of (3)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="trainings at once (as many as there are cores)"
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these rows alone")
    parser.add_argument(
        "--recipe", nargs="*", default=[], metavar="STRATEGY", help="also a strategy as in Python"
    )
    parser.add_argument(
        "--inner", choices=INNER, default=INNER[0], help=f"and its inner optimizer ({INNER[0]})"
    )


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
