"""Several real workers, killed with -9 at once."""

from pathlib import Path

import pytest
from invariants import assert_all, assert_learned_as_much
from training import STRATEGIES, Training

pytestmark = pytest.mark.faults


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
