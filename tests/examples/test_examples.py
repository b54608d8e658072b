"""Every example runs as its first line says, learns, and is short enough to be read at once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("demo.py", "digits.py", "gpt.py", "numpy_only.py")

pytestmark = pytest.mark.usefixtures("mark")


def manyhands_run(folder: Path, workers: int, example: str, **environment: str) -> str:
    """What a run of the example prints."""
    command = [sys.executable, "-m", "manyhands", "run", "-n", str(workers), str(EXAMPLES / example)]
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=170.0
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def figures(pattern: str, printed: str) -> list[float]:
    return [float(value) for value in re.findall(pattern, printed)]


@pytest.mark.parametrize("example", SCRIPTS)
def test_an_example_is_shorter_than_60_lines(example: str) -> None:
    assert len((EXAMPLES / example).read_text().splitlines()) < 60


def test_every_example_is_run_by_a_test() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, "figures.py"}


def test_the_digits_are_learned_by_two_workers_alike(tmp_path: Path) -> None:
    accuracies = figures(r"never seen: (\S+)", manyhands_run(tmp_path, 2, "digits.py"))
    assert len(accuracies) == 2
    assert len(set(accuracies)) == 1
    assert accuracies[0] > 0.85


def test_an_example_runs_alone_with_no_hub_and_no_folder(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / "numpy_only.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=170.0,
    )
    assert figures(r"distance to the truth: (\S+)", ended.stdout)[0] < 0.01
    assert not list(tmp_path.iterdir())


def test_numpy_alone_finds_the_truth_with_two_workers(tmp_path: Path) -> None:
    distances = figures(r"distance to the truth: (\S+)", manyhands_run(tmp_path, 2, "numpy_only.py"))
    assert len(distances) == 2
    assert max(distances) < 0.01


def test_the_gpt_learns(tmp_path: Path) -> None:
    printed = manyhands_run(tmp_path, 2, "gpt.py", SAMPLES="640")
    (before,) = set(figures(r"validation loss before (\S+)", printed))
    (after,) = set(figures(r"after (\S+)", printed))
    assert after < 0.8 * before


def test_the_demo_kills_a_worker_and_shows_that_nothing_is_missing_or_counted_twice(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py")],
        cwd=tmp_path,
        env={**os.environ, "SAMPLES": "1600", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=170.0,
    )
    assert ended.returncode == 0, ended.stderr
    assert "worker 2 is killed with -9" in ended.stderr
    assert re.search(r"samples missing / counted twice\s+│ 0 / 0 ", ended.stdout)
    read, committed = re.search(r"samples read / committed\s+│ (\S+) / (\S+)", ended.stdout).groups()
    assert int(read.replace(",", "")) >= int(committed.replace(",", "")) == 1600
    assert re.search(r"seconds from the kill to the next commit\s+│ \d", ended.stdout)
    (before, after) = map(float, re.search(r"before / after\s+│ (\S+) / (\S+)", ended.stdout).groups())
    assert after < before
