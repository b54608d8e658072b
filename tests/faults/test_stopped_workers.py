"""Workers that are silent for a while, not longer than their lease: SIGSTOP, SIGCONT."""

import os
import signal
from pathlib import Path

import pytest
from invariants import assert_all
from training import Training

pytestmark = pytest.mark.faults


def test_a_stop_within_the_lease_is_no_fault(tmp_path: Path) -> None:
    with Training(tmp_path, "mh.EveryStep()", "1:proposing:8:stop", lease=30.0) as training:
        training.until_done("1:proposing:8:stop")
        training.until("the sleep", lambda: training.sleeps("1"))
        os.kill(training.run.worker_pids["1"], signal.SIGCONT)
        training.until_committed(1200)
        ran = training.end()
    assert_all(ran)
    assert not ran.summary["faults"]
    assert all("has finished" in event.text for event in ran.of_kind("view")[1:])
