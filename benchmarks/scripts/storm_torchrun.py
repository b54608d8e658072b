"""A worker of `benchmarks.storm` under torchrun: DistributedDataParallel, and a checkpoint every 20 steps."""

import os
import time
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.characters import SIZE, build, characters, windows
from benchmarks.gpt import step
from benchmarks.standing import came

CHECKPOINT_STEPS = 20

torch.set_num_threads(1)
rank = int(os.environ["RANK"])
text = characters()
model, optimizer = build(text.letters)
committed = came(str(rank))
dist.init_process_group("gloo")
workers = dist.get_world_size()
kept, first = Path(os.environ["BENCH_FOLDER"], "checkpoint"), 0
if kept.exists():
    state = torch.load(kept, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    first = state["step"]
shared = torch.nn.parallel.DistributedDataParallel(model)
for number in count(first + 1):
    time.sleep(float(os.environ["BENCH_PACE"]))
    step(shared, optimizer, windows(text.training, SIZE.batch, seed=number * workers + rank))
    if rank == 0 and number % CHECKPOINT_STEPS == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": number}
        torch.save(state, kept.with_suffix(".new"))
        kept.with_suffix(".new").replace(kept)
    if rank == 0:
        committed(number * workers)
