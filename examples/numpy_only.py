"""Linear regression by many hands, with numpy alone: `manyhands run -n 4 examples/numpy_only.py`."""

import numpy as np

import manyhands as mh

rng = np.random.default_rng(0)
truth = rng.normal(size=8).astype(np.float32)
x = rng.normal(size=(4000, 8)).astype(np.float32)
y = x @ truth + rng.normal(scale=0.01, size=4000).astype(np.float32)

pool = mh.join()
params = {"w": np.zeros(8, np.float32)}
batches = pool.partition((x, y), batch_size=20, epochs=3)

with pool.share(params, strategy=mh.EveryStep()) as shared:
    for xs, ys in batches:
        error = xs @ params["w"] - ys
        gradients = shared.average({"w": 2 * xs.T @ error / len(xs)})
        params["w"] -= 0.05 * gradients["w"]
        shared.step()
        shared.log(loss=np.mean(error**2))

print(f"distance to the truth: {np.abs(params['w'] - truth).max():.4f}")
