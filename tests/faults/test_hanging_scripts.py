"""A script that hangs while its process lives is not waited for longer than any step may take."""

from pathlib import Path

import pytest
from invariants import assert_all, assert_learned_as_much
from training import STRATEGIES, Training

from manyhands.engines import supervisor

pytestmark = pytest.mark.faults

HANGS = """
        if os.environ["MANYHANDS_NAME"] == "1" and step == 20:
            (go.parent / "hangs").touch()
            while not (go.parent / "comes back").exists():
                time.sleep(0.02)
"""


@pytest.mark.parametrize("strategy", [*STRATEGIES, "mh.LocalSGD(4, close=mh.Deadline(0.5))"])
def test_who_hangs_is_left_out_and_takes_up_the_state_of_the_others_when_it_comes_back(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    training = Training(tmp_path, strategy, within=HANGS)
    training.environment["STEP_SECONDS"] = "5"
    with training:
        training.until("the hang", (tmp_path / "hangs").exists)
        training.until("its end", lambda: training.events("evicted"))
        before = training.committed()
        training.until_committed(before + 200)
        (tmp_path / "comes back").touch()
        training.until_back("1")
        ran = training.end()
    assert_all(ran, cut=True)
    if "Deadline" not in strategy:
        assert_learned_as_much(ran, undisturbed(strategy))
    (evicted,) = ran.of_kind("evicted")
    assert evicted.who == "1"
    assert "its script has been in one step for" in evicted.text
    assert ran.outcome.restarts == {"0": 0, "1": 0, "2": 0}, "its process goes on"
    said = [text for name, text in training.errors if name == "1"]
    assert len([text for text in said if "It is here" in text]) == 1, said
    assert any('train.py", line' in text for text in said), said
    assert any("time.sleep(0.02)" in text for text in said), said


def test_a_run_ends_though_a_script_hangs_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_RETURN", 2.0)
    monkeypatch.setattr(supervisor, "_LOOK_FOR_WHO_IS_OUT", 0.2)
    training = Training(tmp_path, "mh.DiLoCo(4)", within=HANGS)
    training.environment["STEP_SECONDS"] = "3"
    with training:
        training.until("the hang", (tmp_path / "hangs").exists)
        training.until("its end", lambda: training.events("evicted"))
        ran = training.end()
    assert ran.outcome.code == 0
    assert ran.outcome.why == "finished without worker 1, which did not come back"
    assert ran.summary["samples"]["missing"] == 0
    assert ran.summary["samples"]["twice"] == 0
