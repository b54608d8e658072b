"""A worker of `benchmarks.storm`: paced steps of a small GPT, and at the end how well it has learned."""

import os
import time
from pathlib import Path

import torch

import manyhands as mh
from benchmarks.characters import SIZE, build, characters, validation, windows
from benchmarks.gpt import step

STRATEGIES = {"EveryStep": mh.EveryStep(), "DiLoCo": mh.DiLoCo(10, mh.Nesterov(0.7, 0.9))}

torch.set_num_threads(1)
text = characters()
model, optimizer = build(text.letters)
data = windows(text.training, int(os.environ["BENCH_SAMPLES"])).numpy()
pool = mh.join()
batches = pool.partition(data, batch_size=SIZE.batch)
with pool.share(model, optimizer, STRATEGIES[os.environ["BENCH_STRATEGY"]]) as shared:
    for batch in batches:
        time.sleep(float(os.environ["BENCH_PACE"]))
        shared.log(loss=step(model, optimizer, torch.as_tensor(batch)).item())
if pool.rank == 0:
    Path(os.environ["MANYHANDS_CHAOS"], "validation").write_text(str(validation(model, text.held_out)))
