"""Real processes, really killed."""

import json
import time
from pathlib import Path

import pytest

from manyhands.cli.client import HubClient
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions, Outcome
from manyhands.errors import ConfigurationError, HubUnreachable

EXAMPLES = Path(__file__).parents[2] / "examples"

SCRIPT = """
import time
import numpy as np
import manyhands as mh

pool = mh.join()
params = {"w": np.zeros(4, np.float32)}
x = np.ones((1200, 4), np.float32)
batches = pool.partition((x,), batch_size=4, epochs=2)
with pool.share(params, strategy=STRATEGY) as shared:
    for (xs,) in batches:
        time.sleep(0.01)
        gradients = shared.average({"w": params["w"] - xs.mean(0)})
        params["w"] -= 0.02 * gradients["w"]
        shared.step()
        shared.log(loss=float(np.square(params["w"] - 1).sum()))
print("final", params["w"].tobytes().hex(), flush=True)
"""


def until_committed(run: LocalRun, samples: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if HubClient(run.url, run.token).run()["samples"]["committed"] >= samples:
                return
        except (HubUnreachable, ConfigurationError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"{samples} samples were not committed in 60 s")


def check(outcome: Outcome, finals: set[str]) -> None:
    assert outcome.code == 0, outcome.why
    summary = json.loads((Path(str(outcome.folder)) / "summary.json").read_text())
    assert summary["samples"] == {"committed": 2400, "total": 2400, "missing": 0, "twice": 0}  # I3
    assert len(finals) == 1  # I2


@pytest.mark.faults
@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.LocalSGD(5)", "mh.DiLoCo(5)"])
@pytest.mark.parametrize("victim", ["worker", "hub"])
def test_a_kill_loses_no_sample_and_all_end_with_the_same_bits(
    tmp_path: Path, strategy: str, victim: str
) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("STRATEGY", strategy))
    finals: set[str] = set()

    def line(worker: str, stream: str, text: str) -> None:  # noqa: ARG001
        if text.startswith("final"):
            finals.add(text)

    options = LocalOptions(script=script, workers=3, runs=tmp_path / "runs")
    with LocalRun(options, lines=line) as run:
        until_committed(run, 400)
        if victim == "hub":
            run.kill_hub()
        else:
            run.kill_worker("1")
        outcome = run.wait(100)
    check(outcome, finals)


@pytest.mark.faults
def test_the_numpy_example_learns_with_two_workers(tmp_path: Path) -> None:
    lines: list[str] = []
    options = LocalOptions(script=EXAMPLES / "numpy_only.py", workers=2, runs=tmp_path / "runs")
    with LocalRun(options, lines=lambda *line: lines.append(line[2])) as run:
        outcome = run.wait(100)
    assert outcome.code == 0
    distances = [float(text.split()[-1]) for text in lines if text.startswith("distance")]
    assert len(distances) == 2
    assert max(distances) < 0.01
