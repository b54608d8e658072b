"""A worker between two hubs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from stand_in_hub import PATIENCE, StandInHub

from manyhands.core.messages import Beat, Followed, Hello, ToWorker, Welcome
from manyhands.worker.control import Control
from manyhands.worker.other_hubs import OtherHubs


@contextmanager
def following(*hubs: StandInHub) -> Iterator[list[int]]:
    """A worker that was given these hubs in this order; the epochs of which it has heard."""
    epochs = [0]

    def heard(message: ToWorker) -> None:
        assert isinstance(message, Welcome)
        epochs.append(message.epoch)
        control.bound_silence(message.lease)

    def hello(_: str) -> Hello:
        return Hello("run", "me", "me", 1, "127.0.0.1", 1, "0", epoch=max(epochs))

    urls = ",".join(hub.url for hub in hubs)
    failures: list[Exception] = []
    control = Control(urls, "a token", hello, Beat, heard, failures.append, threading.Lock())
    others = OtherHubs(control, "a token", lambda: Followed("run", "me", "me", max(epochs)))
    control.start(time.monotonic() + PATIENCE)
    others.start()
    try:
        yield epochs
    finally:
        others.close()
        control.close()
    assert failures == []


@pytest.fixture
def newer() -> Iterator[StandInHub]:
    hub = StandInHub(epoch=8, lease=0.5)
    yield hub
    hub.close()


@pytest.fixture
def older() -> Iterator[StandInHub]:
    hub = StandInHub(epoch=3, lease=0.5)
    yield hub
    hub.close()


def test_an_older_hub_is_told_of_the_newer_one_again_and_again(newer: StandInHub, older: StandInHub) -> None:
    with following(newer, older) as epochs:
        assert older.wait_for(Followed, number=2) == Followed("run", "me", "me", 8)
        assert set(epochs) == {0, 8}


def test_the_hub_is_left_for_one_that_says_it_is_newer(newer: StandInHub, older: StandInHub) -> None:
    with following(older, newer):
        assert newer.wait_for(Hello).epoch == 3
        older.wait_for_end("me")
        assert older.wait_for(Followed).epoch == 8


def test_a_hub_that_is_not_there_is_tried_again_and_nothing_else_happens(newer: StandInHub) -> None:
    gone = StandInHub()
    gone.close()
    with following(newer, gone):
        newer.wait_for(Beat, number=2)
        assert newer.closed == []


def test_with_one_hub_there_is_nothing_to_compare(newer: StandInHub) -> None:
    with following(newer):
        newer.wait_for(Beat)
        assert not [t for t in threading.enumerate() if t.name == "mh-control-compare"]
