"""One worker of `benchmarks.every_step`: takes turns at sharing with manyhands, with DDP, and not at all."""

import os

import torch
import torch.distributed as dist

import manyhands as mh
from benchmarks.figures import measured
from benchmarks.gloo import start_gloo
from benchmarks.gpt import SIZES, build, parameters, step, text
from benchmarks.turns import take_turns

size = SIZES[os.environ["BENCH_MODEL"]]
steps, repetitions = int(os.environ["BENCH_STEPS"]), int(os.environ["BENCH_REPETITIONS"])

pool = mh.join()
rank, workers = start_gloo()
ours, our_optimizer = build(size)
theirs, their_optimizer = build(size)
encode = mh.chain(mh.Quantize(8)) if os.environ.get("BENCH_BITS") == "8" else mh.chain()
with pool.share(ours, our_optimizer, mh.EveryStep(encode=encode)):
    data = text(size, size.batch * workers)[rank::workers]
    step(ours, our_optimizer, data)
    ddp = torch.nn.parallel.DistributedDataParallel(theirs)

    def plain() -> None:
        with ddp.no_sync():
            step(ddp, their_optimizer, data)

    arms = {
        "ours": (lambda: step(ours, our_optimizer, data), steps),
        "ddp": (lambda: step(ddp, their_optimizer, data), steps),
        "plain": (plain, steps),
    }
    take_turns(arms, 0)
    for repetition in range(repetitions):
        spent = take_turns(arms, repetition)
        if rank == 0:
            measured(parameters=parameters(ours), **spent)
    dist.destroy_process_group()
