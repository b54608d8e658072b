import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from invariants import assert_all
from training import Training

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

import processes

mark = processes.mark


@pytest.fixture(autouse=True)
def _marked(mark: str) -> None:
    """Whatever a test of this folder starts is gone when it ends."""


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], float]:
    """The last loss of the same training when nothing happens to it, by strategy."""

    @cache
    def loss(strategy: str) -> float:
        with Training(tmp_path_factory.mktemp("undisturbed"), strategy) as training:
            ran = training.end()
        assert_all(ran)
        assert not ran.summary["faults"]
        return ran.loss

    return loss
