"""Real workers, killed with -9 at every place of a round."""

import itertools
from pathlib import Path

import pytest
from invariants import assert_all, assert_learned_as_much
from training import CODED, STRATEGIES, Training

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("strategy", "place"),
    [
        *itertools.product(("mh.EveryStep()", "mh.DiLoCo(4)"), ("ready", "sending", "proposing", "combined")),
        *itertools.product(("mh.LocalSGD(4)",), ("combining",)),  # else it is DiLoCo with another outer step
        *itertools.product(CODED, ("sending", "combined")),
    ],
)
def test_a_worker_killed_in_a_round_comes_back_and_nothing_is_lost(
    tmp_path: Path, undisturbed, strategy: str, place: str
) -> None:
    with Training(tmp_path, strategy, f"1:{place}:8") as training:
        training.until_back("1")
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.restarts == {"0": 0, "1": 1, "2": 0}
    assert [fault["who"] for fault in ran.summary["faults"]] == ["1"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_who_tells_of_versions_killed_before_it_does_loses_none(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    with Training(tmp_path, strategy, "0:committed:8") as training:
        training.until_back("0")
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.restarts == {"0": 1, "1": 0, "2": 0}


@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.DiLoCo(4)"])
def test_a_worker_killed_again_while_it_heals_heals_the_next_time(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    with Training(tmp_path, strategy, "1:ready:8", "1:healing:8") as training:
        training.until_back("1", incarnations=3)
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.restarts == {"0": 0, "1": 2, "2": 0}


@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.DiLoCo(4)"])
def test_a_worker_killed_while_it_gives_the_state_to_another_leaves_it_to_the_last_one(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    with Training(tmp_path, strategy, "1:ready:8", "0:donating:8") as training:
        training.until_done("0:donating:8")
        training.until_back("0")
        training.until_back("1")
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))


@pytest.mark.parametrize(
    ("strategy", "place"), list(zip(STRATEGIES, ["combined", "proposing", "combined"], strict=True))
)
def test_two_of_four_workers_killed_in_one_round_come_back(
    tmp_path: Path, undisturbed, strategy: str, place: str
) -> None:
    with Training(tmp_path, strategy, f"1:{place}:8", f"3:{place}:8", workers=4) as training:
        training.until_back("1")
        training.until_back("3")
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.restarts == {"0": 0, "1": 1, "2": 0, "3": 1}
