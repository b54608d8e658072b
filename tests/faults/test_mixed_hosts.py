"""Workers on several hosts, some on the same one, killed with -9 at the places where hosts meet."""

import itertools
from pathlib import Path

import pytest
from invariants import assert_all, assert_learned_as_much
from training import CODED, Training

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("strategy", "place"),
    [
        *itertools.product(("mh.EveryStep()", "mh.DiLoCo(4)"), ("sending", "combined")),
        *itertools.product(CODED, ("combining",)),
    ],
)
def test_a_worker_killed_while_it_combines_for_its_host_comes_back_and_nothing_is_lost(
    tmp_path: Path, undisturbed, strategy: str, place: str
) -> None:
    with Training(tmp_path, strategy, f"1:{place}:8", workers=4, hosts=2) as training:
        training.until_back("1")
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.restarts == {"0": 0, "1": 1, "2": 0, "3": 0}


def test_a_host_dies_with_all_its_workers_and_comes_back(tmp_path: Path, undisturbed) -> None:
    strategy = "mh.DiLoCo(4)"
    with Training(tmp_path, strategy, "1:combining:8", "3:combining:8", workers=4, hosts=2) as training:
        training.until_back("1")
        training.until_back("3")
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
