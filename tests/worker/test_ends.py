"""How workers end: at the same version, with the same model, and what they evaluated is not learned from."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from pool_with_hub import DEADLINE, PoolWithHub

from manyhands.sharing.outer import SGD
from manyhands.sharing.strategy import PLAIN, EveryStep, LocalSGD, Strategy, StreamingDiLoCo
from manyhands.worker.pool import Pool

DATA = np.ones((8, 1), np.float32)
STEPWISE = StreamingDiLoCo(2, SGD(1.0), fragments=2, overlap=0, encode=PLAIN)  # a fragment at each step
OVERLAPPED = StreamingDiLoCo(4, SGD(1.0), fragments=2, overlap=1, encode=PLAIN)
STRATEGIES = [LocalSGD(1), LocalSGD(4), STEPWISE, OVERLAPPED]


class Script:
    """One worker's: a model of one array, to which each step adds a number, at one version in the end."""

    def __init__(self, pool: Pool, strategy: Strategy) -> None:
        self.pool, self.params = pool, {"w": np.zeros(6, np.float32)}
        self.shared = pool.share(self.params, strategy=strategy)

    def step(self, by: float = 1.0, **metrics: float) -> None:
        self.shared.log(**metrics)
        self.params["w"] += self.shared.average({"w": np.full(6, by, np.float32)})["w"]
        self.shared.step()

    @property
    def end(self) -> tuple[int, list[float]]:
        part = self.pool._session._incarnation.part
        return part.participant.version.number, self.params["w"].tolist()

    @property
    def studied(self) -> list[bool]:
        progress = self.pool._session.progress
        return [progress.studied(dataset) for dataset in progress.holdings]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_where_a_stop_condition_is_met_within_a_batch_all_end_at_that_version(
    tmp_path: Path, strategy: Strategy
) -> None:
    """The first worker takes many steps on each batch, the second one."""

    def work(pool: Pool, number: int) -> object:
        batches = pool.partition(DATA, batch_size=1, epochs=100)
        pool.stop_when("loss", below=1.0)
        script = Script(pool, strategy)
        with script.shared:
            for _ in batches:
                for _ in range(1 if number else 9):
                    script.step(1 + number, loss=0.0)
        assert script.shared.stopped.endswith("at version 1 (target 1)")
        return script.end

    first, second = PoolWithHub(tmp_path, 2).run(work)
    assert first == second
    assert first[0] == 1


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_where_the_data_end_within_a_batch_all_end_at_the_same_version(
    tmp_path: Path, strategy: Strategy
) -> None:
    def work(pool: Pool, number: int) -> object:
        batches = pool.partition(DATA, batch_size=2, order="static")
        script = Script(pool, strategy)
        with script.shared:
            for _ in batches:
                for _ in range(1 if number else 9):
                    script.step(1 + number)
        return script.end

    first, second = PoolWithHub(tmp_path, 2).run(work)
    assert first == second


def test_where_a_stop_condition_is_met_while_what_is_left_is_shared_all_end_at_that_version(
    tmp_path: Path,
) -> None:
    def work(pool: Pool, number: int) -> object:
        batches = pool.partition(DATA[:2], batch_size=1, order="static")
        pool.stop_when("loss", below=1.0)
        script = Script(pool, STEPWISE)
        with script.shared:
            for _ in batches:
                script.step(loss=5.0)
                for _ in range(0 if number else 9):
                    script.step(loss=0.0)
        return script.end

    first, second = PoolWithHub(tmp_path, 2).run(work)
    assert first == second
    assert first[0] == 2


def test_a_worker_that_was_given_no_data_ends_with_the_others(tmp_path: Path) -> None:
    def work(pool: Pool, number: int) -> object:  # noqa: ARG001
        batches = pool.partition(DATA, batch_size=8)
        script = Script(pool, STEPWISE)
        with script.shared:
            for _ in batches:
                script.step()
        return script.end

    assert PoolWithHub(tmp_path, 2).run(work) == [(3, [1.0] * 6)] * 2


def test_what_is_learned_from_one_data_set_after_another_is_shared_to_the_end(tmp_path: Path) -> None:
    def work(pool: Pool, number: int) -> object:  # noqa: ARG001
        phases = [pool.partition(DATA, batch_size=2, order="static") for _ in range(2)]
        script = Script(pool, STEPWISE)
        with script.shared:
            for batches in phases:
                for _ in batches:
                    script.step()
        return script.end

    assert PoolWithHub(tmp_path, 2).run(work) == [(6, [4.0] * 6)] * 2


def test_what_all_learn_from_data_of_their_own_after_the_batches_is_shared_too(tmp_path: Path) -> None:
    def work(pool: Pool, number: int) -> object:  # noqa: ARG001
        batches = pool.partition(DATA, batch_size=2, order="static")
        script = Script(pool, LocalSGD(1))
        with script.shared:
            for _ in batches:
                script.step()
            for _ in range(5):
                script.step()
        return script.end

    assert PoolWithHub(tmp_path, 2).run(work) == [(7, [7.0] * 6)] * 2


def test_a_step_after_the_last_batch_that_only_one_worker_takes_is_in_no_version_and_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def work(pool: Pool, number: int) -> object:
        batches = pool.partition(DATA, batch_size=2, order="static")
        script = Script(pool, LocalSGD(2))
        with script.shared:
            for _ in batches:
                script.step()
            if number == 0:
                script.step()
        return script.end

    first, second = PoolWithHub(tmp_path, 2).run(work)
    assert first == second
    (warning,) = [each for each in caplog.messages if "after the last data were shared" in each]
    assert warning.startswith("worker 0 ")


@pytest.mark.parametrize("strategy", [EveryStep(), *STRATEGIES], ids=str)
@pytest.mark.parametrize("when", ["at the end", "before each step", "before each step, in part"])
def test_what_is_evaluated_weighs_nothing_and_is_not_learned_from(
    tmp_path: Path, strategy: Strategy, when: str
) -> None:
    def work(pool: Pool, number: int) -> object:  # noqa: ARG001
        batches = pool.partition(DATA, batch_size=2, epochs=3)
        held_out = pool.partition(DATA, batch_size=7, epochs=50)
        script = Script(pool, strategy)
        with script.shared:
            for _ in batches:
                if when != "at the end":
                    for _ in held_out:
                        if "part" in when:
                            break
                script.step()
            for _ in held_out if when == "at the end" else ():
                pass
        return *script.end, script.studied

    pool = PoolWithHub(tmp_path, 2)
    first, second = pool.run(work)
    assert first == second
    assert first[-1] == [True, False]
    weights = [weight for version in pool.versions for weight in version.contributors.values()]
    assert {weight % 2 for weight in weights} == {0}


def test_who_takes_part_while_it_waits_for_what_it_evaluates_has_not_learned_from_it(tmp_path: Path) -> None:
    taken = threading.Event()

    def work(pool: Pool, number: int) -> object:
        batches = pool.partition(DATA, batch_size=2)
        held_out = pool.partition(DATA, batch_size=8)
        script = Script(pool, LocalSGD(1))
        with script.shared:
            if number:
                next(iter(held_out))
                taken.set()
            else:
                assert taken.wait(DEADLINE)
                assert not list(held_out)
            for _ in batches:
                script.step()
        return *script.end, script.studied

    first, second = PoolWithHub(tmp_path, 2).run(work)
    assert first == second
    assert first[-1] == [True, False]
