"""One worker of `benchmarks.low_bandwidth`: takes turns at training with sharing, without, and with DDP."""

import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

import manyhands as mh
from benchmarks.gloo import start_gloo
from benchmarks.gpt import SIZES, build, step, text
from benchmarks.launching import measured

size = SIZES[os.environ["BENCH_MODEL"]]
every, repetitions = int(os.environ["BENCH_EVERY"]), int(os.environ["BENCH_REPETITIONS"])
strategy = mh.StreamingDiLoCo(
    every, fragments=int(os.environ["BENCH_FRAGMENTS"]), overlap=int(os.environ["BENCH_OVERLAP"])
)
DDP_STEPS = 2

torch.set_num_threads(1)
pool = mh.join()
rank, workers = start_gloo()
ours, our_optimizer = build(size)
alone, alone_optimizer = build(size)
data = text(size, size.batch * workers)[rank::workers]
with pool.share(ours, our_optimizer, strategy):
    for _ in range(every):  # a first round, before any wait for gloo
        step(ours, our_optimizer, data)
    ddp = torch.nn.parallel.DistributedDataParallel(alone)

    def plain() -> None:
        with ddp.no_sync():
            step(ddp, alone_optimizer, data)

    arms: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: step(ours, our_optimizer, data), every),
        "plain": (plain, every),
        "ddp": (lambda: step(ddp, alone_optimizer, data), DDP_STEPS),
    }
    for repetition in range(repetitions):
        spent = {}
        names = list(arms)
        for name in names[repetition % 3 :] + names[: repetition % 3]:
            one, steps = arms[name]
            dist.barrier()
            began = time.perf_counter()
            for _ in range(steps):
                one()
            dist.barrier()
            spent[name] = (time.perf_counter() - began) / steps
        if rank == 0:
            measured(**spent)
    dist.destroy_process_group()
