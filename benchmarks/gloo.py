"""The peer's process group, between the workers of a benchmark."""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed as dist


def start_gloo() -> tuple[int, int]:
    """All of them meet over a file in the folder of the run; returns rank and size.

    Called before a model is shared: the others get its state from the first worker, which must not wait
    for them anywhere else meanwhile. So the first round of ours comes before the first of gloo.
    """
    store = Path(os.environ["BENCH_FOLDER"]) / "gloo"
    rank, size = int(os.environ["MANYHANDS_NAME"]), int(os.environ["BENCH_WORKERS"])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    return rank, size
