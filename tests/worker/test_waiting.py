"""How the script's thread waits."""

from __future__ import annotations

import itertools
import logging
import threading
from types import SimpleNamespace

import pytest

from manyhands.errors import RunLost, RunOver
from manyhands.worker.waiting import Waiting


def test_a_wait_without_a_limit_says_again_and_again_what_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "manyhands.worker")
    Waiting("3", patience=1e-4).until(lambda: len(caplog.records) == 3, lambda: "a place in the pool")
    assert [record.getMessage() for record in caplog.records] == (
        ["worker 3 has waited 0 s for a place in the pool"] * 3
    )


def test_news_ends_a_wait_at_once_and_what_is_not_news_does_not() -> None:
    waiting, come, asked = Waiting("0"), threading.Event(), threading.Event()

    def condition() -> bool:
        asked.set()
        return come.is_set()

    def bring() -> None:
        assert asked.wait(10.0)
        with waiting.changed:
            waiting.changed.notify_all()
            come.set()

    thread = threading.Thread(target=bring)
    thread.start()
    assert waiting.wait(condition, 60.0)
    thread.join()
    assert not waiting.wait(lambda: False, 0.0)


def test_the_first_error_ends_every_wait_unless_what_it_is_for_has_come() -> None:
    waiting = Waiting("0")
    waiting.fail(RunLost("all are gone"))
    waiting.fail(RunOver("later"))
    with pytest.raises(RunLost, match="all are gone"):
        waiting.wait(lambda: False, 60.0)
    with pytest.raises(RunLost):
        waiting.until(lambda: False, lambda: "nothing")
    assert waiting.wait(lambda: True, 60.0)


@pytest.mark.parametrize("obliging", [True, False])
def test_who_waits_does_what_others_ask_for_only_where_it_may(obliging: bool) -> None:
    waiting, done = Waiting("0"), []
    waiting.meanwhile = lambda: done.append("done")
    waiting.wait(lambda: done or not obliging, 60.0, obliging=obliging)
    assert bool(done) is obliging


def test_a_request_that_cannot_be_met_yet_does_not_keep_the_thread_that_waits_busy() -> None:
    waiting, looks = Waiting("0"), []
    waiting.meanwhile = lambda: looks.append("not yet")
    assert not waiting.wait(lambda: False, 0.05)
    assert len(looks) <= 3


def test_a_step_lasts_from_one_wait_to_the_next_and_the_longest_tells_how_long_one_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("manyhands.worker.waiting.time", SimpleNamespace(monotonic=lambda: now))
    waiting = Waiting("0", patience=2.0)
    now += 7.0
    assert waiting.step() == (7.0, 600.0)
    assert waiting.wait(lambda: True, 1.0)
    assert waiting.step() == (0.0, 600.0)
    now += 50.0
    waiting.here()
    now += 3.0
    assert waiting.step() == (3.0, 1000.0)


def test_who_waits_is_in_no_step_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(0.0)
    monkeypatch.setattr("manyhands.worker.waiting.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr("manyhands.worker.waiting.LOOK_SECONDS", 1e-4)
    waiting = Waiting("0")
    assert not waiting.wait(lambda: False, 500.0)
    waiting.here()
    assert waiting.step() == (1.0, 300.0)
