"""A real training that is stopped, or whose launcher is killed: nothing runs on, nothing is forgotten."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import marked, until
from training import Training

from manyhands.hub.journal import Journal

pytestmark = pytest.mark.faults


@contextmanager
def launched(training: Training) -> Iterator[subprocess.Popen[str]]:
    """`manyhands run` of the training's script, in a process of its own, with something committed."""
    command = [sys.executable, "-m", "manyhands", "run", "-n", "2", "--lease", "2"]
    process = subprocess.Popen(
        [*command, "--folder", str(training.folder / "run"), str(training.script)],
        env={**os.environ, **training.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                if " commit 8 " in line:
                    break
            yield process
    finally:
        process.kill()


def committed(folder: Path) -> list[int]:
    with Journal(folder / "run" / "hub.db", readonly=True) as journal:
        return [version.number for version in journal.versions()]


def reported(folder: Path) -> str:
    command = [sys.executable, "-m", "manyhands", "report", str(folder / "run")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60.0).stdout


def test_a_killed_launcher_leaves_no_process_and_all_that_was_committed(tmp_path: Path, mark: str) -> None:
    training = Training(tmp_path, "mh.DiLoCo(4)")
    with launched(training) as launcher:
        assert len(marked(mark)) >= 5  # launcher, guard, hub, two workers
        launcher.kill()
        until(lambda: marked(mark) == [])
    numbers = committed(tmp_path)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 7
    assert f"({len(numbers)} in the journal)" in reported(tmp_path)


def test_a_run_whose_workers_all_died_says_so_when_it_is_taken_up_again(tmp_path: Path, mark: str) -> None:
    training = Training(tmp_path, "mh.EveryStep()")
    with launched(training) as launcher:
        launcher.kill()
        until(lambda: marked(mark) == [])
    before = committed(tmp_path)
    command = [sys.executable, "-m", "manyhands", "run", "-n", "2", "--lease", "2"]
    again = subprocess.run(
        [*command, "--folder", str(tmp_path / "run"), str(training.script)],
        env={**os.environ, **training.environment},
        capture_output=True,
        text=True,
        timeout=90.0,
    )
    assert again.returncode == 1
    assert re.search(
        r"version \d+·1 is lost: every member that held it is gone .*start a new run", again.stderr
    )
    assert committed(tmp_path) == before


@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.DiLoCo(4)"])
def test_ctrl_c_stops_a_training_in_order(tmp_path: Path, mark: str, strategy: str) -> None:
    training = Training(tmp_path, strategy)
    with launched(training) as launcher:
        launcher.send_signal(signal.SIGINT)
        said = launcher.stdout.read()
        assert launcher.wait(timeout=30.0) == 130
    assert marked(mark) == []
    assert "stopped by SIGINT" in said
    assert "Traceback" not in said
    assert "killing" not in said
    with Journal(tmp_path / "run" / "hub.db", readonly=True) as journal:
        kinds = journal.kinds()
    assert kinds["left"] == 2
    assert "lost" not in kinds
    assert "report.html" in said
