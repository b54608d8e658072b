"""Findings of a review: each of these fails on the code as it is."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_with_hub import DEADLINE, PoolWithHub

from manyhands.core.messages import Beat, Followed, Hello
from manyhands.errors import RunOver
from manyhands.frameworks.updates import Updates
from manyhands.sharing.rhythm import Deadline
from manyhands.sharing.strategy import LocalSGD, Strategy, StreamingDiLoCo
from manyhands.worker import termination
from manyhands.worker.control import Control
from manyhands.worker.other_hubs import OtherHubs
from manyhands.worker.pool import Pool
from manyhands.worker.waiting import Waiting

SOON = Deadline(0.05)
SAMPLES = 12


@pytest.mark.parametrize(
    "strategy", [LocalSGD(1, close=SOON), StreamingDiLoCo(2, fragments=2, overlap=0, close=SOON)], ids=str
)
def test_no_deadline_passes_while_the_combined_update_is_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy
) -> None:
    """The next round's slices land where those lie that the script's thread has yet to add to the base."""
    conclude, slow = Updates._conclude, threading.local()
    moved: list[tuple[int, int]] = []

    def slowly(self: Updates, rounds: Any, outcome: Any) -> None:
        if getattr(slow, "here", False) and outcome.kind == "committed" and len(moved) < 2:
            before, until = rounds._version, time.monotonic() + 1.0
            while rounds._version == before and time.monotonic() < until:
                time.sleep(0.01)
            moved.append((before, rounds._version))
        conclude(self, rounds, outcome)

    monkeypatch.setattr(Updates, "_conclude", slowly)

    def work(pool: Pool, number: int) -> object:
        slow.here = number == 0
        params = {"w": np.arange(600, dtype=np.float32)}
        batches = pool.partition(np.ones((SAMPLES, 1), np.float32), batch_size=1, order="static")
        with pool.share(params, strategy=strategy) as shared:
            for count, _ in enumerate(batches):
                params["w"] -= 1.0 + 0.1 * count
                shared.step()
        slow.here = False
        return params["w"].tolist()

    pool = PoolWithHub(tmp_path, 2)
    ends: list[object] = []
    try:
        ends = pool.run(work)
    except RunOver:  # told to a worker that was evicted for other bits, and came back too late
        pass
    assert [a for a, b in moved if a != b] == [], f"versions passed while one was applied: {moved}"
    assert ends[0] == ends[1]


def test_a_signal_that_comes_within_the_package_ends_a_long_step_after_it_in_half_the_time_of_grace() -> None:
    termination.obey(0.4)
    try:
        with termination.deferred():
            told = [False]

            def tell() -> bool:
                if not told[0]:
                    told[0] = True
                    os.kill(os.getpid(), signal.SIGTERM)
                return True

            Waiting("0").wait(tell, 1.0)
            with pytest.raises(SystemExit):
                time.sleep(2.0)  # the script's own step
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        termination._asked = 0


def test_a_worker_leaves_at_once_though_another_hub_it_was_given_does_not_answer() -> None:
    from stand_in_hub import StandInHub

    hub = StandInHub(epoch=8, lease=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        def hello(_: str) -> Hello:
            return Hello("run", "me", "me", 1, "127.0.0.1", 1, "0")

        control = Control(
            f"{hub.url},{url}", "t", hello, Beat, lambda _: None, lambda _: None, threading.Lock()
        )
        control.silence = 0.2
        others = OtherHubs(control, "t", lambda: Followed("run", "me", "me", 8))
        control.start(time.monotonic() + DEADLINE)
        others.start()
        silent.settimeout(DEADLINE)
        connection, _ = silent.accept()  # it is being asked
        began = time.monotonic()
        others.close()
        took = time.monotonic() - began
        control.close()
        connection.close()
    hub.close()
    assert took < 1.0


def test_a_worker_that_was_given_no_run_comes_back_after_an_eviction(tmp_path: Path) -> None:
    """Its new incarnation has the hub's word for the run, where the others' exchanges have none."""

    def work(pool: Pool, number: int) -> float:
        params = {"w": np.zeros(2, np.float32)}
        batches = pool.partition(np.ones((8, 1), np.float32), batch_size=1, order="static")
        began = time.monotonic()
        with pool.share(params, strategy=LocalSGD(1)) as shared:
            for count, _ in enumerate(batches):
                params["w"] -= 1.0
                shared.step()
                if number == 1 and count == 0:
                    pool._session._incarnation.resign("it is told to")
        return time.monotonic() - began

    assert max(PoolWithHub(tmp_path, 2).run(work)) < 8.0


def test_the_only_holder_that_is_told_to_end_gives_the_state_to_who_fetches_it_within_the_time_of_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a host is replaced by another: the new worker has come, and the old one gets SIGTERM."""
    from concurrent.futures import ThreadPoolExecutor

    from pool_with_hub import _hub, _work

    told, here = threading.Event(), threading.local()
    shared_once = threading.Event()
    monkeypatch.setattr(termination, "asked", lambda: told.is_set() and getattr(here, "first", False))
    monkeypatch.setattr(termination, "_until", time.monotonic() + DEADLINE)

    def first(pool: Pool, _: int) -> None:
        here.first = True
        params = {"w": np.zeros(2, np.float32)}
        batches = pool.partition(np.ones((8, 1), np.float32), batch_size=1)
        with pool.share(params, strategy=LocalSGD(1)) as shared:
            for _ in batches:
                params["w"] -= 1.0
                shared.step()
                shared_once.set()
                until = time.monotonic() + DEADLINE
                while pool.size < 2 and time.monotonic() < until:
                    time.sleep(0.01)
                told.set()

    def second(pool: Pool, _: int) -> int:
        params = {"w": np.zeros(2, np.float32)}
        batches = pool.partition(np.ones((8, 1), np.float32), batch_size=1)
        with pool.share(params, strategy=LocalSGD(1)) as shared:
            for _ in batches:
                params["w"] -= 1.0
                shared.step()
        return int(params["w"][0])

    with _hub(tmp_path, 1) as url, ThreadPoolExecutor(2) as threads:
        old = threads.submit(_work, url, 0, "", first)
        assert shared_once.wait(DEADLINE)
        new = threads.submit(_work, url, 1, "", second)
        with pytest.raises(SystemExit):
            old.result(DEADLINE)
        assert new.result(DEADLINE) == -8
