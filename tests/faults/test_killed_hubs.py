"""The hub, killed with -9 at every place of a round by one of its own workers, and started again."""

from pathlib import Path

import pytest
from invariants import assert_all, assert_learned_as_much
from training import STRATEGIES, Training

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("strategy", "place"),
    [*zip(STRATEGIES, ["proposing", "committed", "combined"], strict=True), ("mh.EveryStep()", "committed")],
)
def test_a_hub_killed_in_a_round_stops_nobody_and_forgets_nothing(
    tmp_path: Path, undisturbed, strategy: str, place: str
) -> None:
    with Training(tmp_path, strategy, f"0:{place}:8:hub") as training:
        training.until_done(f"0:{place}:8:hub")
        training.until("the hub's return", lambda: training.events("hub"))
        training.until_committed(1200)
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.hub_restarts == 1
    assert ran.outcome.restarts == {"0": 0, "1": 0, "2": 0}
    assert not ran.of_kind("lost", "left-out", "rolled-back")


@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.DiLoCo(4)"])
def test_a_hub_killed_while_a_worker_heals_takes_the_change_of_view_up_again(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    with Training(tmp_path, strategy, "1:proposing:8", "1:healing:8:hub") as training:
        training.until_done("1:healing:8:hub")
        training.until_back("1")
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.hub_restarts == 1
    assert ran.outcome.restarts == {"0": 0, "1": 1, "2": 0}
