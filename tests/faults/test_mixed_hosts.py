"""Workers on several hosts, some on the same one, killed with -9 at the places where hosts meet."""

from pathlib import Path

import pytest
from invariants import assert_all, assert_learned_as_much
from training import CODED, Training

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.DiLoCo(4)", *CODED])
def test_workers_killed_while_they_combine_for_their_host_and_a_whole_host_come_back_and_nothing_is_lost(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    with Training(tmp_path, strategy, workers=4, hosts=2, pace=0.06) as training:
        training.until_committed(100)
        for starts, place in enumerate(("sending", "combining", "combined"), start=2):
            training.order(f"1:{place}:{starts}")
            training.until_back("1", incarnations=starts)
        training.plan("1:combining:9")
        training.plan("3:combining:9")
        training.until_back("1", incarnations=5)
        training.until_back("3")
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.restarts == {"0": 0, "1": 4, "2": 0, "3": 1}
