"""A worker of `benchmarks.recovery`: paced steps that say when they were done, until told to hurry."""

import os
import struct
import time
from pathlib import Path

import numpy as np

import manyhands as mh

STRATEGIES = {"EveryStep": mh.EveryStep(), "DiLoCo": mh.DiLoCo(every=10)}
folder, pace = Path(os.environ["BENCH_FOLDER"]), float(os.environ["BENCH_PACE"])
strategy = STRATEGIES[os.environ["BENCH_STRATEGY"]]
samples, batch = int(os.environ["BENCH_SAMPLES"]), int(os.environ["BENCH_BATCH"])
hurry, hurried = folder / "hurry", False

pool = mh.join()
params = {"w": np.zeros(250_000, np.float32)}
data = np.random.default_rng(0).random((samples, 4), np.float32)
batches = pool.partition((data,), batch_size=batch)
with (
    (folder / f"steps-{os.environ['MANYHANDS_NAME']}").open("ab", buffering=0) as steps,
    pool.share(params, strategy=strategy) as shared,
):
    for (xs,) in batches:
        hurried = hurried or hurry.exists()
        if not hurried:
            time.sleep(pace)
        gradients = shared.average({"w": params["w"] - xs.mean()})
        params["w"] -= 0.02 * gradients["w"]
        shared.step()
        steps.write(struct.pack("d", time.time()))
print("final", params["w"].tobytes()[:64].hex(), flush=True)
