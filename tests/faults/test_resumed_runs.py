"""Runs that go on from what was kept of them, with real processes that are really killed."""

import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from invariants import (
    assert_all,
    assert_I1_one_commit,
    assert_I2_same_bits,
    assert_I5_no_hang,
    assert_learned_as_much,
)
from training import CODED, EPOCHS, SAMPLES, STRATEGIES, Ran, Training

from manyhands.checkpoints.manifest import Manifest
from manyhands.checkpoints.store import MANIFEST, Store

pytestmark = pytest.mark.faults

TOTAL = SAMPLES * EPOCHS
PACE = 0.06  # so that the data last for all of it


def positions(ran: Ran) -> Counter[tuple[int, int]]:
    """How often each sample of each epoch is in a version that counts."""
    made_of = ran.spans()
    found: Counter[tuple[int, int]] = Counter()
    for version in ran.versions:
        for span in made_of[version.number, version.view]:
            found.update((span.epoch, position) for position in range(span.start, span.stop))
    return found


def kept_positions(manifest: Manifest) -> Counter[tuple[int, int]]:
    (held,) = manifest.holdings
    before = Counter((epoch, position) for epoch in range(held.epoch) for position in range(SAMPLES))
    before.update((held.epoch, at) for start, stop in held.committed for at in range(start, stop))
    return before


def assert_exactly_once(counted: Counter[tuple[int, int]]) -> None:
    assert len(counted) == TOTAL, "I3: samples are missing"
    assert set(counted.values()) == {1}, "I3: samples are in two versions"


def test_a_run_that_came_to_its_end_trains_on_for_another_epoch(tmp_path: Path) -> None:
    url = str(tmp_path / "kept")
    for name in ("first", "then"):
        (tmp_path / name).mkdir()
    with Training(tmp_path / "first", STRATEGIES[2], checkpoint=url, checkpoint_every="5versions") as first:
        first.end()
    then = Training(tmp_path / "then", STRATEGIES[2], workers=2, resume=url)
    then.script.write_text(then.script.read_text().replace(f"epochs={EPOCHS}", f"epochs={EPOCHS + 1}"))
    with then:
        ran = then.end()
    assert_I5_no_hang(ran)
    assert_I2_same_bits(ran)
    counted = positions(ran)
    assert counted == Counter((EPOCHS, position) for position in range(SAMPLES))
    samples = ran.summary["samples"]
    assert (samples["committed"], samples["missing"], samples["twice"]) == (TOTAL + SAMPLES, 0, 0)


def test_where_a_stop_condition_is_met_the_model_with_which_all_end_is_kept(tmp_path: Path) -> None:
    url = str(tmp_path / "kept")
    training = Training(tmp_path, STRATEGIES[2], checkpoint=url, checkpoint_every="1000versions")
    line = "batches = pool.partition("
    condition = f'pool.stop_when("loss", below=0.1)\n{line}'
    training.script.write_text(training.script.read_text().replace(line, condition))
    with training:
        ran = training.end()
    store = Store(url)
    kept = store.manifest(store.newest())
    assert kept.version.number == ran.versions[-1].number
    assert kept.samples < TOTAL


def flip(folder: Path) -> None:
    """One bit in the middle of a checkpoint's arrays."""
    path = folder / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("strategy", [*STRATEGIES, CODED[1]])
def test_all_workers_die_and_checkpoints_are_torn_and_damaged_and_every_sample_counts_once(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    """Who keeps the state dies of it, and another does it. All die at once: the run goes on from the last
    checkpoint. All die again, the last is torn and the one before damaged: it goes on from the third, and so
    does another run, on another day, with four workers."""
    for name in ("first", "then"):
        (tmp_path / name).mkdir()
    store, then = Store(str(tmp_path / "kept")), Store(str(tmp_path / "copy"))
    kept = {"checkpoint": store.url, "checkpoint_every": "5versions"}
    with Training(tmp_path / "first", strategy, pace=PACE, lease=2.0, **kept) as training:
        training.order("0:saving:1")
        torn = [name for name in store.names() if not Path(store.url, name, MANIFEST).exists()]
        training.until("a checkpoint", lambda: training.events("checkpoint"))
        training.until_back("0")

        for name in ("0", "1", "2"):
            training.run.kill_worker(name)
        training.until("the run to go on", lambda: training.events("restored"))
        for name in ("0", "1", "2"):
            training.until_back(name)

        enough = len(training.events("checkpoint")) + 3
        training.until("three checkpoints", lambda: len(training.events("checkpoint")) >= enough)
        for name in ("0", "1", "2"):
            training.run.kill_worker(name, signal.SIGSTOP)
        last, damaged, whole = store.written()[:3]
        Path(store.url, last, MANIFEST).unlink()
        flip(Path(store.url, damaged))
        shutil.copytree(store.url, then.url)
        for name in ("0", "1", "2"):
            training.run.kill_worker(name)
        training.until("the way back", lambda: len(training.events("restored")) == 3)
        for name in ("0", "1", "2"):
            training.until_back(name, incarnations=3)
        ran = training.end()
    assert torn
    assert ran.of_kind("checkpoint")[0].who != "0"
    assert store.newest() not in torn
    assert_I5_no_hang(ran)
    assert_I1_one_commit(ran)
    assert_I2_same_bits(ran)
    assert_exactly_once(positions(ran))
    assert ran.summary["samples"]["missing"] == ran.summary["samples"]["twice"] == 0
    assert sum(version.samples for version in ran.versions) == TOTAL
    assert_learned_as_much(ran, undisturbed(strategy))
    told = ran.of_kind("restored")[2].text
    assert "is torn" in told or "is damaged" in told  # that the last one was kept, nobody may have heard
    assert told.endswith(f"from {store.url}/{whole}")

    with Training(tmp_path / "then", strategy, workers=4, resume=then.url) as training:
        ran = training.end()
    manifest = then.manifest(whole)
    assert 0 < manifest.samples < TOTAL
    assert_I5_no_hang(ran)
    assert_I2_same_bits(ran)
    assert [version.number for version in ran.versions] == list(
        range(manifest.version.number + 1, ran.versions[-1].number + 1)
    )
    assert_exactly_once(positions(ran) + kept_positions(manifest))
    samples = ran.summary["samples"]
    assert (samples["committed"], samples["missing"], samples["twice"]) == (TOTAL, 0, 0)
    assert_learned_as_much(ran, undisturbed(strategy))
    (event,) = ran.of_kind("restored")
    assert f"{damaged} is damaged" in event.text
    assert event.text.endswith(f"it goes on with version {manifest.version}, from {then.url}/{whole}")


def test_a_store_that_cannot_be_written_costs_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with Training(
        tmp_path, "mh.DiLoCo(4)", checkpoint=str(tmp_path / "kept"), checkpoint_every="5versions"
    ) as training:
        training.until("a word about it", lambda: training.events("checkpoint-failed"))
        ran = training.end()
    assert_all(ran)
    assert "cannot be written to" in ran.of_kind("checkpoint-failed")[0].text


def test_a_hub_killed_and_started_again_goes_on_keeping_the_state(tmp_path: Path) -> None:
    url = str(tmp_path / "kept")
    with Training(tmp_path, "mh.DiLoCo(4)", checkpoint=url, checkpoint_every="5versions") as training:
        training.until("a checkpoint", lambda: training.events("checkpoint"))
        training.run.kill_hub()
        training.until("another", lambda: len(training.events("checkpoint")) > 1)
        ran = training.end()
    assert_all(ran)
    assert Store(url).manifest(Store(url).newest()).version.number == ran.versions[-1].number


def test_a_script_that_shares_something_else_is_refused_by_the_run_it_would_go_on_with(
    tmp_path: Path,
) -> None:
    url = str(tmp_path / "kept")
    (tmp_path / "first").mkdir()
    (tmp_path / "then").mkdir()
    with Training(tmp_path / "first", "mh.DiLoCo(4)", checkpoint=url, checkpoint_every="5versions") as first:
        first.until("a checkpoint", lambda: first.events("checkpoint"))
        first.run.kill()
        first.run.wait(60.0)
    with Training(tmp_path / "then", "mh.LocalSGD(4)", resume=url, max_restarts=0) as then:
        ran = then.end()
    assert ran.outcome.code == 1
    assert any("LocalSGD" in text and "DiLoCo" in text for _, text in then.errors)
