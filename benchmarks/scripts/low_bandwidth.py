"""One worker of `benchmarks.low_bandwidth`: takes turns at training with sharing, without, and with DDP."""

import os

import torch
import torch.distributed as dist

import manyhands as mh
from benchmarks.figures import measured
from benchmarks.gloo import start_gloo
from benchmarks.gpt import SIZES, build, step, text
from benchmarks.turns import take_turns

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
    # A first round before any wait for gloo, and half of the steps to the next: a turn begins and ends there,
    # with nothing under way.
    for _ in range(every + every // (2 * strategy.fragments)):
        step(ours, our_optimizer, data)
    ddp = torch.nn.parallel.DistributedDataParallel(alone)

    def plain() -> None:
        with ddp.no_sync():
            step(ddp, alone_optimizer, data)

    arms = {
        "ours": (lambda: step(ours, our_optimizer, data), every),
        "plain": (plain, every),
        "ddp": (lambda: step(ddp, alone_optimizer, data), DDP_STEPS),
    }
    for repetition in range(repetitions):
        spent = take_turns(arms, repetition)
        if rank == 0:
            measured(**spent)
    dist.destroy_process_group()
