"""A second data set that the loop only evaluates, with real processes."""

from pathlib import Path

import pytest

from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions

pytestmark = pytest.mark.faults

SCRIPT = """
import os, sys
import numpy as np
import manyhands as mh

pool = mh.join()
x = np.ones((400, 4), np.float32)
params = {"w": np.ones(4, np.float32)}
steps = evaluated = 0

def step():
    global steps
    gradients = shared.average({"w": np.full(4, 0.5, np.float32)})
    params["w"] -= gradients["w"]
    steps += bool(gradients["w"].any())
    shared.step()

training = pool.partition(x, batch_size=8, epochs=2)
held_out = pool.partition(np.ones((96, 4), np.float32), batch_size=8, epochs=3)
with pool.share(params, strategy=eval(sys.argv[1])) as shared:
    for _ in range(BEFORE):
        evaluated += sum(map(len, held_out))
    for batch in training:
        step()
        shared.log(samples=len(batch))
        if steps == 5:
            evaluated += sum(map(len, held_out))
    evaluated += sum(map(len, held_out))
os.write(1, f"{evaluated} {training.progress}\\n".encode())
"""


def run(folder: Path, script: str, *arguments: str) -> list[str]:
    """What the workers print."""
    (folder / "train.py").write_text(script)
    lines: list[str] = []
    options = LocalOptions(folder / "train.py", arguments, workers=3, folder=folder / "run")
    with LocalRun(options, lambda _worker, _stream, text: lines.append(text)) as going:
        assert going.wait(60.0).code == 0, lines
    return lines


@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.LocalSGD(4)"])
@pytest.mark.parametrize("before", [0, 1])
def test_a_data_set_that_is_only_evaluated_ends_and_does_not_keep_the_others_waiting(
    tmp_path: Path, strategy: str, before: int
) -> None:
    script = SCRIPT.replace("BEFORE", str(before))
    lines = run(tmp_path, script, strategy)
    assert len(lines) == 3, lines
    assert sum(int(line.split()[0]) for line in lines) >= 96 * (1 + before), lines
    assert {line.split()[1] for line in lines} == {"1.0"}
