"""A pool as a script enters and leaves it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from stand_in_hub import StandInHub

from manyhands.core.messages import Left
from manyhands.errors import ModelError, UserError
from manyhands.sharing.strategy import Strategy
from manyhands.worker import driving
from manyhands.worker.alone import Alone
from manyhands.worker.driving import Driver
from manyhands.worker.pool import Pool
from manyhands.worker.session import Session
from manyhands.worker.settings import Settings


class Leaving(Alone):
    """A pool of one that counts its goodbyes."""

    def __init__(self) -> None:
        super().__init__()
        self.goodbyes = 0

    def leave(self, *, finished: bool, why: str, told: bool = False, raised: bool = False) -> None:  # noqa: ARG002
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


class Schedule:
    """Something with a state."""

    def state_dict(self) -> dict[str, float]:
        return {"rate": 0.5}

    def load_state_dict(self, state: dict[str, float]) -> None:
        raise NotImplementedError


class Schedules(Schedule):
    """Something with a state of which more can be had, as of a torch ModuleList."""

    def __iter__(self) -> Iterator[Schedule]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("also", "given"),
    [
        (SCHEDULE := Schedule(), (SCHEDULE,)),
        (SCHEDULES := Schedules(), (SCHEDULES,)),
        ([SCHEDULE, SCHEDULES], (SCHEDULE, SCHEDULES)),
        (None, ()),
    ],
)
def test_a_single_object_with_a_state_is_as_good_as_a_list_of_it(
    also: object, given: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[object, ...]] = []

    def driver_for(model: object, optimizer: object, strategy: Strategy, also: Iterable[object]) -> Driver:
        seen.append(tuple(also))
        return driving.driver_for(model, optimizer, strategy, also)

    monkeypatch.setattr("manyhands.worker.pool.driver_for", driver_for)
    Pool(Leaving()).share(model(), also=also)
    assert seen == [given]


def test_what_has_no_state_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"also\[0\] \(int\) is a int without state_dict"):
        Pool(Leaving()).share(model(), also=5)
