"""Disks that are full, under the run's folder and under its checkpoints: what waits, and what is kept."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from invariants import assert_all, assert_learned_as_much
from training import CODED, STRATEGIES, Training

from manyhands.checkpoints.store import Store

pytestmark = pytest.mark.faults


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A disk of 16 MiB as this folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root, with the right to mount, can make a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def of_the_run(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "run") as folder:
        yield folder


@pytest.fixture
def of_checkpoints(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "kept") as folder:
        yield folder


def fill(folder: Path) -> Path:
    """To the last byte."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            continue
    return ballast


@pytest.mark.parametrize("strategy", [*STRATEGIES, CODED[1]])
def test_disks_that_are_full_for_a_while_lose_nothing(
    tmp_path: Path, of_the_run: Path, of_checkpoints: Path, undisturbed, strategy: str
) -> None:
    """The one of checkpoints, which costs checkpoints and nothing else, then that of the run."""
    kept = {"checkpoint": str(of_checkpoints), "checkpoint_every": "5versions"}
    with Training(tmp_path, strategy, pace=0.06, **kept) as training:
        training.until("a checkpoint", lambda: training.events("checkpoint"))
        ballast = fill(of_checkpoints)
        training.until("a word about it", lambda: training.events("checkpoint-failed"))
        ballast.unlink()
        before = training.committed()
        training.until_committed(before + 100)

        ballast = fill(of_the_run)
        training.until("the hub's trouble", lambda: "full" in training.trouble())
        ballast.unlink()
        training.until("the hub's health", lambda: not training.trouble())
        kept_before = len(training.events("checkpoint"))
        training.until("another checkpoint", lambda: len(training.events("checkpoint")) > kept_before)
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    (failed,) = ran.of_kind("checkpoint-failed")
    assert "cannot be written to" in failed.text
    assert "No space left" in failed.text
    (event,) = ran.of_kind("hub")
    assert re.search(r"for .* s the hub could not write: .*hub\.db cannot be written: .* is full", event.text)
    assert "free some space" in event.text
    assert not ran.of_kind("lost", "left-out", "rolled-back")
    store = Store(str(of_checkpoints))
    assert store.manifest(store.newest()).version.number == ran.versions[-1].number


def test_a_disk_that_stays_full_ends_the_run_and_keeps_what_was_committed(
    tmp_path: Path, of_the_run: Path
) -> None:
    impatient = (sys.executable, "-P", "-m", "manyhands.hub", "--journal-deadline", "1")
    with Training(tmp_path, "mh.DiLoCo(4)", workers=2, hub_command=impatient, hub_restarts=1) as training:
        training.until_committed(200)
        ballast = fill(of_the_run)
        outcome = training.run.wait(60.0)
    assert outcome.code == 1
    assert re.search(r"the disk under \S+ is full; free some space there", outcome.why), outcome.why
    ballast.unlink()
    report = [sys.executable, "-m", "manyhands", "report", str(of_the_run)]
    shown = subprocess.run(report, capture_output=True, text=True, timeout=60.0)
    assert shown.returncode == 0, shown.stderr
    committed = int(re.search(r"samples\s+([\d,]+) of 9,600", shown.stdout)[1].replace(",", ""))
    assert committed >= 200
