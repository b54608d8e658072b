"""One worker of `benchmarks.slow_workers`: paced steps, those of the last worker several times as long."""

import os
import time

import numpy as np

import manyhands as mh
from benchmarks.figures import measured

STRATEGIES = {
    "seconds": mh.DiLoCo(mh.seconds(float(os.environ["BENCH_SECONDS"]))),
    "steps": mh.DiLoCo(int(os.environ["BENCH_EVERY"])),
    "deadline": mh.DiLoCo(
        int(os.environ["BENCH_EVERY"]), close=mh.Deadline(float(os.environ["BENCH_DEADLINE"]))
    ),
}
name, workers = os.environ["MANYHANDS_NAME"], int(os.environ["BENCH_WORKERS"])
slow = int(name) == workers - 1
length = float(os.environ["BENCH_STEP"]) * (float(os.environ["BENCH_SLOWER"]) if slow else 1.0)

pool = mh.join()
params = {"w": np.zeros(1_000_000, np.float32)}
batches = pool.partition(np.zeros((int(os.environ["BENCH_BATCHES"]), 1), np.float32), batch_size=1)
steps, busy = 0, 0.0
with pool.share(params, strategy=STRATEGIES[os.environ["BENCH_STRATEGY"]]) as shared:
    began = time.perf_counter()
    for _ in batches:
        at = time.perf_counter()
        time.sleep(length)
        params["w"] -= 0.001
        ended = time.perf_counter()
        steps, busy = steps + 1, busy + ended - at
        shared.step()
    measured(steps=steps, busy=busy, wall=time.perf_counter() - began)
