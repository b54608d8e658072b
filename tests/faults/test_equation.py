"""What n processes learn together, against the same sums on paper."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions

pytestmark = pytest.mark.faults

N, BATCH, RATE = 3, 8, 0.05
SCRIPT = f"""
import os, sys
import numpy as np
import manyhands as mh

strategy, batch, samples = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(1)
x = rng.normal(size=(samples, 6)).astype(np.float32)
y = (x @ rng.normal(size=6)).astype(np.float32)
number = np.arange(samples)

pool = mh.join()
params = {{"w": rng.normal(size=6).astype(np.float32)}}
batches = pool.partition((x, y, number), batch_size=batch, epochs=1, order="static")
with pool.share(params, strategy=eval(strategy)) as shared:
    for xs, ys, which in batches:
        if batches.weight:
            os.write(1, f"batch {{' '.join(map(str, which))}}\\n".encode())
        gradients = shared.average({{"w": 2 * xs.T @ (xs @ params["w"] - ys) / len(xs)}})
        params["w"] -= np.float32({RATE}) * gradients["w"]
        shared.step()
os.write(1, f"final {{params['w'].tobytes().hex()}}\\n".encode())
"""


def learned(lines: list[str]) -> np.ndarray:
    (final,) = {line for line in lines if line.startswith("final")}
    return np.frombuffer(bytes.fromhex(final.split()[1]), np.float32)


def together(folder: Path, *arguments: object, script: str = SCRIPT) -> list[str]:
    """What N workers print."""
    (folder / "train.py").write_text(script)
    lines: list[str] = []
    options = LocalOptions(folder / "train.py", tuple(map(str, arguments)), workers=N, folder=folder / "run")
    with LocalRun(options, lambda _worker, _stream, text: lines.append(text)) as run:
        assert run.wait(60.0).code == 0, lines
    return lines


def alone(folder: Path, *arguments: object, script: str = SCRIPT) -> list[str]:
    (folder / "train.py").write_text(script)
    command = [sys.executable, str(folder / "train.py"), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MANYHANDS")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60.0)
    return ended.stdout.splitlines()


@pytest.mark.parametrize("strategy", ["mh.LocalSGD(1)", "mh.EveryStep()"])
def test_one_step_of_n_processes_is_the_mean_of_their_own_steps(tmp_path: Path, strategy: str) -> None:
    """θᵢ' = θᵢ − η∇J(θᵢ) on the data of process i, then θ = (1/n) Σ θᵢ'."""
    samples = N * BATCH
    lines = together(tmp_path, strategy, BATCH, samples)
    batches = [list(map(int, line.split()[1:])) for line in lines if line.startswith("batch")]
    assert sorted(sample for batch in batches for sample in batch) == list(range(samples))
    assert [len(batch) for batch in batches] == [BATCH] * N

    rng = np.random.default_rng(1)
    x = rng.normal(size=(samples, 6)).astype(np.float32)
    y = (x @ rng.normal(size=6)).astype(np.float32)
    theta = rng.normal(size=6).astype(np.float32)
    stepped = []
    for batch in batches:
        xs, ys = x[batch].astype(np.float64), y[batch].astype(np.float64)
        stepped.append(theta - RATE * 2 * xs.T @ (xs @ theta.astype(np.float64) - ys) / BATCH)
    np.testing.assert_allclose(learned(lines), np.mean(stepped, axis=0), rtol=2e-6, atol=2e-6)


def test_every_step_of_n_processes_is_one_process_with_the_n_fold_batch(tmp_path: Path) -> None:
    samples = 20 * N * BATCH
    many = together(tmp_path, "mh.EveryStep()", BATCH, samples)
    one = alone(tmp_path, "mh.EveryStep()", N * BATCH, samples)
    assert len([line for line in many if line.startswith("batch")]) == 20 * N
    assert len([line for line in one if line.startswith("batch")]) == 20
    np.testing.assert_allclose(learned(many), learned(one), rtol=1e-5, atol=1e-6)


TWICE = f"""
import os, sys
import torch
import manyhands as mh

batch, samples = int(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(1)
x = torch.randn(samples, 6)
y = x @ torch.randn(6, 1)
model = torch.nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr={RATE})

pool = mh.join()
batches = pool.partition((x.numpy(), y.numpy()), batch_size=batch, order="static")
with pool.share(model, optimizer) as shared:
    for xs, ys in batches:
        xs, ys = torch.as_tensor(xs), torch.as_tensor(ys)
        optimizer.zero_grad()
        (model(xs) - ys).square().mean().backward()
        (model(xs) - ys).abs().mean().backward()
        optimizer.step()
weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
os.write(1, f"final {{weights.numpy().tobytes().hex()}}\\n".encode())
"""


def test_two_backwards_a_step_on_n_processes_are_those_of_one_process_with_the_n_fold_batch(
    tmp_path: Path,
) -> None:
    samples = 10 * N * BATCH
    many = together(tmp_path, BATCH, samples, script=TWICE)
    one = alone(tmp_path, N * BATCH, samples, script=TWICE)
    np.testing.assert_allclose(learned(many), learned(one), rtol=1e-5, atol=1e-6)
