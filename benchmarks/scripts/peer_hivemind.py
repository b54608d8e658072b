"""One worker of hivemind for `benchmarks.low_bandwidth`: its local updates, beside the plain loop.

Not in turns: hivemind begins a round when it reckons from the pace of all that enough samples have been
learned from, whoever is where in its loop. A pause would upset that, and a barrier keep others from the
round. So those with sharing come in one go, timed by the first worker alone; as many without come before them
and after, and count by halves.
"""

import os
import statistics
import time
from importlib.metadata import version

import hivemind
import torch
import torch.distributed as dist
from hivemind.compression import Float16Compression

from benchmarks.figures import measured
from benchmarks.gloo import start_gloo
from benchmarks.gpt import SIZES, build, step, text
from benchmarks.turns import seconds_each

size = SIZES[os.environ["BENCH_MODEL"]]
every, repetitions = int(os.environ["BENCH_EVERY"]), int(os.environ["BENCH_REPETITIONS"])

torch.set_num_threads(1)
rank, workers = start_gloo()
store = dist.FileStore(os.environ["BENCH_FOLDER"] + "/addresses", workers)  # type: ignore[attr-defined]
alone, alone_optimizer = build(size)
shared, local_optimizer = build(size)
data = text(size, size.batch * workers)[rank::workers]


def turns_without() -> list[float]:
    return [seconds_each(lambda: step(alone, alone_optimizer, data), every) for _ in range(repetitions)]


dht = hivemind.DHT(
    host_maddrs=[f"/ip4/{os.environ['BENCH_ADDRESS']}/tcp/0"],
    initial_peers=store.get("first").decode().split() if rank else (),
    start=True,
)
if rank == 0:
    store.set("first", " ".join(map(str, dht.get_visible_maddrs())))
optimizer = hivemind.Optimizer(
    dht=dht,
    run_id="benchmark",
    optimizer=local_optimizer,
    batch_size_per_step=size.batch,
    target_batch_size=every * workers * size.batch,
    use_local_updates=True,
    matchmaking_time=5.0,
    averaging_timeout=60.0,
    state_averaging_compression=Float16Compression(),
    averager_opts={"target_group_size": workers},
    verbose=rank == 0,
)
before = turns_without()
for _ in range(2 * every + every // 2):
    step(shared, optimizer, data)
spent = []
for _ in range(repetitions):
    began = time.perf_counter()
    for _ in range(every):
        step(shared, optimizer, data)
    spent.append((time.perf_counter() - began) / every)
store.add("done", 1)
while store.add("done", 0) < workers:  # who is not through yet needs the others for its rounds
    step(shared, optimizer, data)
optimizer.shutdown()
dht.shutdown()
plain = [statistics.mean(turns) for turns in zip(before, turns_without(), strict=True)]
if rank == 0:
    names = {"version": version("hivemind"), "torch": torch.__version__}
    for one, other in zip(spent, plain, strict=True):
        measured(**names, shared=one, plain=other)
dist.destroy_process_group()
