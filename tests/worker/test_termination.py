"""When a script hears of SIGTERM: real signals, sent by the process to itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from manyhands.worker import termination
from manyhands.worker.waiting import Waiting

GRACE = 60.0
CODE = 128 + signal.SIGTERM


@pytest.fixture(autouse=True)
def obeying() -> Iterator[None]:
    termination.obey(GRACE)
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert not termination.asked()


def tell() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_script_that_shares_nothing_is_told_at_once() -> None:
    with pytest.raises(SystemExit, match=str(CODE)):
        tell()
    assert not termination.asked()


def test_a_script_that_shares_a_model_is_told_when_it_calls_the_package() -> None:
    with termination.deferred():
        tell()
        assert termination.asked()
        with pytest.raises(SystemExit, match=str(CODE)):
            termination.check()
    assert not termination.asked()


def test_a_second_signal_is_not_put_off() -> None:
    with termination.deferred():
        tell()
        with pytest.raises(SystemExit):
            tell()


def test_a_step_that_takes_half_the_time_of_grace_is_cut_short() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    termination.obey(0.2)
    with termination.deferred():
        tell()
        with pytest.raises(SystemExit):
            time.sleep(GRACE)


def test_what_is_postponed_goes_on_until_the_time_of_grace_is_over() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    termination.obey(0.2)
    began = time.monotonic()
    with termination.deferred(), termination.postponed():
        tell()
        termination.check()
        with pytest.raises(SystemExit):
            Waiting("0").wait(lambda: False, GRACE)
    assert 0.1 < time.monotonic() - began < GRACE / 2


def test_another_thread_is_told_nothing() -> None:
    with termination.deferred():
        tell()
        heard = list[bool]()
        thread = threading.Thread(target=lambda: heard.append(termination.asked()))
        thread.start()
        thread.join()
        assert heard == [False]
        with pytest.raises(SystemExit):
            termination.check()


def test_a_signal_that_comes_within_the_package_cuts_a_long_step_after_it_short() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    termination.obey(0.4)
    told = list[bool]()

    def tell_once() -> bool:
        if not told:
            told.append(True)
            tell()
        return True

    with termination.deferred():
        Waiting("0").wait(tell_once, 1.0)
        with pytest.raises(SystemExit):
            time.sleep(GRACE)
