"""A pool as a script enters and leaves it."""

from __future__ import annotations

import numpy as np
import pytest
from stand_in_hub import StandInHub

from manyhands.core.messages import Left
from manyhands.errors import UserError
from manyhands.worker.alone import Alone
from manyhands.worker.pool import Pool
from manyhands.worker.session import Session
from manyhands.worker.settings import Settings


class Leaving(Alone):
    """A pool of one that counts its goodbyes."""

    def __init__(self) -> None:
        super().__init__()
        self.goodbyes = 0

    def leave(self, *, finished: bool, why: str, told: bool = False) -> None:  # noqa: ARG002
        self.goodbyes += 1


def model() -> dict[str, np.ndarray]:
    return {"w": np.ones(3, np.float32)}


def test_within_the_block_of_share_leaving_is_an_error_with_the_remedy() -> None:
    session = Leaving()
    pool = Pool(session)
    with pool.share(model()):
        with pytest.raises(UserError, match="end that block"):
            pool.leave()
        assert session.goodbyes == 0
    pool.leave()
    pool.leave()
    assert session.goodbyes == 1


def test_a_model_is_shared_in_one_block_only() -> None:
    shared = Pool(Leaving()).share(model())
    with shared, pytest.raises(UserError, match="once"):
        shared.__enter__()
    with pytest.raises(UserError, match="once"):
        shared.__enter__()


def test_who_never_entered_the_block_of_share_can_leave(hub: StandInHub) -> None:
    pool = Pool(Session(Settings(hub=hub.url)))
    pool.share(model())
    pool.leave()
    hub.wait_for_end(hub.member().incarnation)
    assert hub.left() == [Left(True, "it has finished")]
