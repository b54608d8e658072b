"""One worker of `benchmarks.every_step`: takes turns at sharing with manyhands, with DDP, and not at all."""

import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

import manyhands as mh
from benchmarks.gloo import start_gloo
from benchmarks.gpt import SIZES, build, parameters, step, text
from benchmarks.launching import measured

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

    arms: dict[str, Callable[[], object]] = {
        "ours": lambda: step(ours, our_optimizer, data),
        "ddp": lambda: step(ddp, their_optimizer, data),
        "plain": plain,
    }
    for repetition in range(-1, repetitions):
        spent = {}
        names = list(arms)
        for name in names[repetition % 3 :] + names[: repetition % 3]:
            dist.barrier()
            began = time.perf_counter()
            for _ in range(steps):
                arms[name]()
            dist.barrier()
            spent[name] = (time.perf_counter() - began) / steps
        if rank == 0 and repetition >= 0:
            measured(parameters=parameters(ours), **spent)
    dist.destroy_process_group()
