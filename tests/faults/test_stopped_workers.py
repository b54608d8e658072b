"""Workers that are silent for longer than their lease and go on where they stopped: SIGSTOP, SIGCONT."""

import os
import signal
from pathlib import Path

import pytest
from invariants import assert_all, assert_learned_as_much
from training import STRATEGIES, Training

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("strategy", "place"), list(zip(STRATEGIES, ["sending", "proposing", "combined"], strict=True))
)
def test_a_worker_that_slept_through_its_lease_comes_back_as_another_and_writes_nothing(
    tmp_path: Path, undisturbed, strategy: str, place: str
) -> None:
    with Training(tmp_path, strategy, f"1:{place}:8:stop", lease=2.5) as training:
        training.until("the end of the lease", lambda: training.events("lost"))
        version = training.status()["version"]["number"]
        training.until("a round without it", lambda: training.status()["version"]["number"] > version + 1)
        (sleeper,) = training.incarnations("1")
        os.kill(sleeper["pid"], signal.SIGCONT)
        training.until_back("1")
        first, second = training.incarnations("1")
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert "silent" in first["why"]
    assert second["pid"] == first["pid"]
    assert ran.outcome.restarts == {"0": 0, "1": 0, "2": 0}
    assert [event.who for event in ran.of_kind("lost")] == ["1"]
    spoken = {trace.incarnation: trace.numbers("applied") for trace in ran.traces}
    evicted_at = next(number for number, _, who in ran.views[1:] if first["incarnation"] not in who)
    assert all(view < evicted_at for _, _, view in spoken[first["incarnation"]])


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
