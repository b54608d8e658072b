"""Workers that come back, and that leave while others come."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pool_with_hub import DEADLINE, PoolWithHub, hub_of, work_of

from manyhands.sharing.strategy import LocalSGD
from manyhands.worker import termination
from manyhands.worker.pool import Pool

GRACE = 5.0


def test_a_worker_that_was_given_no_run_comes_back_after_an_eviction(tmp_path: Path) -> None:
    """Its first incarnation was of no run, for it had yet to hear of which one."""

    def work(pool: Pool, number: int) -> int:
        params = {"w": np.zeros(2, np.float32)}
        batches = pool.partition(np.ones((8, 1), np.float32), batch_size=1, epochs=10_000)
        pool.stop_when("back", above=0.1)
        views = set[int]()
        with pool.share(params, strategy=LocalSGD(1)) as shared:
            for _ in batches:
                params["w"] -= 1.0
                views.add(pool.view)
                shared.log(back=float(number == 1 and len(views) > 1))
                shared.step()
                if number == 1 and len(views) == 1:
                    pool._session._incarnation.resign("it is told to")
        return len(views)

    assert min(PoolWithHub(tmp_path, 2).run(work)) > 1


def test_the_only_holder_that_is_told_to_end_gives_the_state_to_who_fetches_it_within_the_time_of_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a host is replaced by another: the new worker has come, and the old one gets SIGTERM."""
    told, here = threading.Event(), threading.local()
    shared_once = threading.Event()
    monkeypatch.setattr(termination, "asked", lambda: told.is_set() and getattr(here, "first", False))
    monkeypatch.setattr(termination, "_until", time.monotonic() + GRACE)

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

    def second(pool: Pool, _: int) -> None:
        params = {"w": np.zeros(2, np.float32)}
        batches = pool.partition(np.ones((8, 1), np.float32), batch_size=1)
        with pool.share(params, strategy=LocalSGD(1)) as shared:
            for _ in batches:
                params["w"] -= 1.0
                shared.step()

    with hub_of(tmp_path, 1) as url, ThreadPoolExecutor(2) as threads:
        old = threads.submit(work_of, url, 0, "", first)
        assert shared_once.wait(DEADLINE)
        new = threads.submit(work_of, url, 1, "", second)
        with pytest.raises(SystemExit):
            old.result(DEADLINE)
        new.result(DEADLINE)
    assert sum(row.samples for row in PoolWithHub(tmp_path, 1).versions) == 8
