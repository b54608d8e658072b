"""Rounds that close at their deadline, while a worker is in the middle of a local step."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_with_hub import DEADLINE, PoolWithHub

from manyhands.frameworks.updates import Updates
from manyhands.sharing.outer import SGD
from manyhands.sharing.rhythm import ALL, Deadline
from manyhands.sharing.strategy import FOUR_BITS, PLAIN, DiLoCo, LocalSGD, Strategy, StreamingDiLoCo
from manyhands.worker.pool import Pool

SOON = Deadline(0.02)
STRATEGIES = [
    LocalSGD(1, close=SOON),
    DiLoCo(1, close=SOON, encode=FOUR_BITS),
    StreamingDiLoCo(2, SGD(1.0), fragments=2, overlap=0, encode=PLAIN, close=SOON),
    StreamingDiLoCo(4, fragments=2, overlap=1, close=SOON),
]
SAMPLES = 36


def step(shared: object, params: dict[str, np.ndarray], by: float) -> None:
    params["w"] += by
    shared.step()  # type: ignore[attr-defined]


@pytest.mark.parametrize("machine", ["", "one"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_a_round_goes_on_without_who_is_in_a_long_step_and_takes_it_in_later(
    tmp_path: Path, strategy: Strategy, machine: str
) -> None:
    """The first worker's step ends only when the others have made a version, which must not wait for it."""
    made, began, held = threading.Event(), threading.Event(), list[int]()

    def work(pool: Pool, number: int) -> object:
        params = {"w": np.arange(600, dtype=np.float32)}
        batches = pool.partition(np.ones((SAMPLES, 1), np.float32), batch_size=1, order="static")
        with pool.share(params, strategy=strategy) as shared:
            for count, _ in enumerate(batches):
                if number == 0 and count == 1:
                    held.append(version(pool))
                    began.set()
                    assert made.wait(DEADLINE), "the others have waited"
                elif number and not made.is_set() and began.wait(DEADLINE):
                    step(shared, params, -1.0)
                    if version(pool) > held[0]:
                        made.set()
                    continue
                step(shared, params, -1.0)
        return version(pool), params["w"].tolist()

    pool = PoolWithHub(tmp_path, 3, machine)
    ends = pool.run(work)
    assert ends[0] == ends[1] == ends[2]
    assert sum(row.samples for row in pool.versions) == SAMPLES
    assert any(0 < sum(n > 0 for n in row.contributors.values()) < 3 for row in pool.versions)


def version(pool: Pool) -> int:
    return int(pool._session._version)


def test_what_the_late_one_learned_stays_and_counts_with_the_next_version(tmp_path: Path) -> None:
    made = threading.Event()

    def work(pool: Pool, number: int) -> list[float]:
        params = {"w": np.zeros(2, np.float32)}
        batches = pool.partition(np.ones((4, 1), np.float32), batch_size=1, order="static")
        seen = []
        with pool.share(params, strategy=LocalSGD(1, close=SOON)) as shared:
            for _ in batches:
                if number == 0 and not seen:
                    assert made.wait(DEADLINE)
                step(shared, params, 8.0 if number == 0 else 1.0)
                made.set()
                seen.append(float(params["w"][0]))
        return [*seen, float(params["w"][0])]

    late, other = PoolWithHub(tmp_path, 2).run(work)
    assert other[0] == 1.0  # its own step alone
    assert late[0] == 1.0 + 8.0  # that, and its own on top
    assert late[-1] == other[-1]
    assert late[-1] > 1.0 + 4.0


def test_no_deadline_means_that_all_are_waited_for(tmp_path: Path) -> None:
    began, ended = threading.Event(), threading.Event()

    def work(pool: Pool, number: int) -> int:
        params = {"w": np.zeros(2, np.float32)}
        batches = pool.partition(np.ones((2, 1), np.float32), batch_size=1, order="static")
        with pool.share(params, strategy=LocalSGD(1, close=ALL)) as shared:
            for _ in batches:
                if number == 0:
                    assert began.wait(DEADLINE)
                    assert version(pool) == 0
                    ended.set()
                else:
                    began.set()
                step(shared, params, 1.0)
                assert number == 0 or ended.is_set()
        return version(pool)

    assert PoolWithHub(tmp_path, 2).run(work) == [1, 1]


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
        batches = pool.partition(np.ones((12, 1), np.float32), batch_size=1, order="static")
        with pool.share(params, strategy=strategy) as shared:
            for count, _ in enumerate(batches):
                params["w"] -= 1.0 + 0.1 * count
                shared.step()
        slow.here = False
        return params["w"].tolist()

    pool = PoolWithHub(tmp_path, 2)
    ends = pool.run(work)
    assert [a for a, b in moved if a != b] == [], f"versions passed while one was applied: {moved}"
    assert ends[0] == ends[1]
