"""Workers that come from elsewhere while a training goes on, and leave it in order."""

import signal
from pathlib import Path

import pytest
from invariants import assert_all, assert_learned_as_much
from training import STRATEGIES, Training

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_worker_that_joins_in_the_middle_fetches_the_state_and_contributes(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    with Training(tmp_path, strategy, workers=2) as training:
        training.until_committed(200)
        with training.joiner("late") as late:
            training.until_back("late", incarnations=1)
            training.let_go()
            said = late.said()
            assert late.returncode == 0, said
        ran = training.end(said)
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.summary["workers"]["late"]["samples"] > 0
    assert not ran.summary["faults"]
    assert [trace.said[0][0] for trace in ran.traces if trace.name == "late"] == ["healed"]


@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.DiLoCo(4)"])
def test_a_worker_killed_while_it_gives_parts_of_the_state_is_not_needed_by_who_joins(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    with Training(tmp_path, strategy, "0:giving:1", hosts=5, ballast=4 << 20) as training:
        training.until_committed(200)
        with training.joiner("late") as late:
            training.until_done("0:giving:1")
            training.until_back("late", incarnations=1)
            training.until_back("0")
            training.let_go()
            said = late.said()
            assert late.returncode == 0, said
        ran = training.end(said)
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.restarts == {"0": 1, "1": 0, "2": 0}


@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.DiLoCo(4)"])
def test_a_worker_that_is_terminated_leaves_in_order_and_no_lease_runs_out(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    with Training(tmp_path, strategy, lease=60.0) as training:
        training.until_committed(200)
        training.run.kill_worker("1", signal.SIGTERM)
        training.until("the word that it left", lambda: training.events("left"))
        training.until_back("1")
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert not ran.summary["faults"]
    assert ran.news[0].startswith("worker 1 ended with exit code 143; restart 1 of 5")
    left = ran.of_kind("left")
    assert (left[0].who, left[0].text) == ("1", "worker 1 left: it was told to end")


@pytest.mark.parametrize("strategy", ["mh.DiLoCo(100_000)", "mh.StreamingDiLoCo(100_000, fragments=2)"])
def test_who_is_terminated_between_two_rounds_shares_what_it_has_learned_first(
    tmp_path: Path, strategy: str
) -> None:
    """Nobody would begin a round but the one that leaves, so the first version is what it has handed over."""
    with Training(tmp_path, strategy, lease=60.0) as training:
        training.until("all to learn", lambda: training.status().get("samples", {}).get("read", 0) >= 200)
        training.run.kill_worker("1", signal.SIGTERM)
        training.until("the word that it left", lambda: training.events("left"))
        ran = training.end()
    assert_all(ran)
    shared = [version for version in ran.versions if version.view == 1]
    assert shared
    assert all(version.contributors["1"] > 0 for version in shared)
    assert not ran.of_kind("lost", "rolled-back")
