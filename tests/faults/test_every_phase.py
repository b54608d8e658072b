"""For each strategy: a kill at every phase of a round, of workers and of the hub, and a sleep, in one run."""

import os
import signal
from pathlib import Path

import pytest
from invariants import assert_all
from training import CODED, STRATEGIES, Training

pytestmark = pytest.mark.faults

PHASES = ("ready", "sending", "proposing", "combining", "combined", "committed")
OF_THE_HUB = ("sending", "combined", "committed")  # it is told of versions alone
PACE = 0.08  # so that the data last for all of it


@pytest.mark.parametrize("strategy", [*STRATEGIES, CODED[1]])
def test_workers_killed_at_every_phase_in_turn_cost_nothing(tmp_path: Path, strategy: str) -> None:
    with Training(tmp_path, strategy, pace=PACE) as training:
        training.until_committed(100)
        starts = {"0": 1, "1": 1, "2": 1}
        for number, phase in enumerate(PHASES):
            name = str(number % 3)
            starts[name] += 1
            training.order(f"{name}:{phase}:{number}")
            training.until_back(name, incarnations=starts[name])
        ran = training.end()
    assert_all(ran)
    assert len(ran.of_kind("lost")) == len(PHASES)


@pytest.mark.parametrize("strategy", [*STRATEGIES, CODED[1]])
def test_hubs_killed_at_every_phase_and_a_worker_that_sleeps_cost_nothing(
    tmp_path: Path, strategy: str
) -> None:
    with Training(tmp_path, strategy, pace=PACE, lease=2.5) as training:
        training.until_committed(100)
        for number, phase in enumerate(OF_THE_HUB):
            training.order(f"{number % 3}:{phase}:{number}:hub")
            before = training.committed()
            training.until("more samples", lambda before=before: training.committed() > before + 50)
        training.order("1:sending:9:stop")
        training.until("the end of its lease", lambda: training.events("lost"))
        os.kill(training.run.worker_pids["1"], signal.SIGCONT)
        training.until_back("1")
        ran = training.end()
    assert_all(ran)
    assert len(ran.of_kind("lost")) == 1
