"""What a worker says of itself in a storm, and that it says nothing otherwise."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

import numpy as np
import pytest
from pool_with_hub import PoolWithHub

from manyhands.core.messages import Contribution, Dataset, Span, Version
from manyhands.core.testimony import Adopted, Partitioned, account
from manyhands.engines.chaos import read_testimonies
from manyhands.frameworks.arrays import driver_for as driver_for_arrays
from manyhands.sharing.strategy import EveryStep, LocalSGD, Strategy
from manyhands.worker import testimony
from manyhands.worker.driving import Driver, driver_for
from manyhands.worker.pool import Pool


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "chaos"
    folder.mkdir()
    monkeypatch.setenv(testimony.VARIABLE, str(folder))
    return folder


def test_nothing_is_said_where_there_is_no_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(testimony.VARIABLE, raising=False)
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("a file was opened"))
    monkeypatch.setattr(Path, "touch", lambda *_, **__: pytest.fail("a file was made"))
    testimony.came()
    testimony.adopted(Version(1, 1), "d", ())


def test_a_version_is_written_down_with_its_samples_and_who_made_it(said: Path) -> None:
    spans = Span(0, 0, 0, 4), Span(0, 0, 8, 12)
    made_of = (Contribution("a", 4.0, spans[:1]), Contribution("b", 4.0, spans[1:]), Contribution("c", 0.0))
    testimony.came()
    testimony.say(Partitioned(Dataset(0, 12, 4, 1, "dynamic", 0)))
    testimony.adopted(Version(1, 1), "d", made_of)
    assert (said / str(os.getpid())).exists()
    (partitioned, adopted) = read_testimonies(said)[os.getpid()]
    assert isinstance(partitioned, Partitioned)
    assert isinstance(adopted, Adopted)
    assert (adopted.version, adopted.digest, adopted.spans) == (Version(1, 1), "d", spans)
    assert (adopted.contributed, adopted.combined) == (3, 2)


def test_a_line_that_a_kill_cut_short_is_no_testimony(said: Path) -> None:
    testimony.adopted(Version(1, 1), "d", ())
    with (said / f"{os.getpid()}.held").open("ab") as file:
        file.write(b'{"type":"Adopted","at":1')
    assert len(read_testimonies(said)[os.getpid()]) == 1


def flipped(said: Path) -> None:
    """Turn over a bit in the middle of what is exposed."""
    where = json.loads((said / f"{os.getpid()}.json").read_text())
    ctypes.c_ubyte.from_address(where["address"] + where["bytes"] // 2).value ^= 1


@pytest.mark.parametrize("strategy", [EveryStep(), LocalSGD(5)])
def test_a_bit_turned_over_in_arrays_changes_the_digest(said: Path, strategy: Strategy) -> None:
    params = {"w": np.zeros(8, np.float32), "wide": np.zeros((4, 64), np.float32).T}
    driver = driver_for_arrays(params, None, strategy, ())
    assert driver is not None
    check(said, driver)


@pytest.mark.parametrize("strategy", [EveryStep(), LocalSGD(5)])
def test_a_bit_is_never_turned_over_in_a_frozen_weight(said: Path, strategy: Strategy) -> None:
    torch = pytest.importorskip("torch", reason="frozen weights are PyTorch's")
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 2))
    model[0].requires_grad_(False)
    check(said, driver_for(model, torch.optim.SGD(model[1].parameters(), 0.1), strategy))


def check(said: Path, driver: Driver) -> None:
    before = driver.digest()
    testimony.expose(driver)
    assert driver.digest() == before
    flipped(said)
    assert driver.digest() != before


def test_what_workers_wrote_down_accounts_for_every_sample(said: Path, tmp_path: Path) -> None:
    def script(pool: Pool, _: int) -> None:
        params = {"w": np.zeros(3, np.float32)}
        batches = pool.partition((np.arange(60, dtype=np.float32),), batch_size=5, epochs=2)
        with pool.share(params, strategy=LocalSGD(2)) as shared:
            for _batch in batches:
                params["w"] += 1
                shared.step()

    workers = PoolWithHub(tmp_path, 2)
    workers.run(script)
    names = [Version(row.number, row.view) for row in workers.versions]
    found = account(read_testimonies(said), names, ())
    assert (found.total, found.committed, found.lost, found.twice) == (120, 120, 0, 0)
    assert (found.versions, found.unwitnessed, found.results) == (len(names), 0, 1)
    assert found.equal
