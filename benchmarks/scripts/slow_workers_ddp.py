"""One worker of `benchmarks.slow_workers` under DistributedDataParallel over gloo: the same paced steps."""

import os
import time

import torch
import torch.distributed as dist

from benchmarks.figures import measured
from benchmarks.gloo import start_gloo

torch.set_num_threads(1)
rank, workers = start_gloo()
length = float(os.environ["BENCH_STEP"]) * (float(os.environ["BENCH_SLOWER"]) if rank == workers - 1 else 1)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1000, 1000, bias=False))
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
ones, busy = torch.ones(1, 1000), 0.0
steps = int(os.environ["BENCH_BATCHES"]) // workers
dist.barrier()
began = time.perf_counter()
for _ in range(steps):
    at = time.perf_counter()
    time.sleep(length)
    loss = model(ones).mean()
    busy += time.perf_counter() - at
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
measured(steps=steps, busy=busy, wall=time.perf_counter() - began)
dist.destroy_process_group()
