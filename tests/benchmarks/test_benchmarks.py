"""Each benchmark in its smallest setting. What it measures is never judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TEXT = ROOT.parent / "shared" / "data" / "text" / "tinyshakespeare.txt"
NAMES = ("step_overhead", "every_step", "exchange", "recovery", "healing", "hub_load", "startup", "memory")


def run(name: str, *options: str, path: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=150, check=False
    )


def check(row: dict[str, Any]) -> None:
    assert isinstance(row["name"], str)
    assert isinstance(row["unit"], str)
    assert isinstance(row["value"], int | float)
    assert {"peer", "peer_value", "ratio", "limit", "met"} <= row.keys()
    assert (row["peer"] is None) == (row["peer_value"] is None) == (row["ratio"] is None)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_in_its_smallest_setting_and_prints_one_object_a_row(name: str) -> None:
    ended = run(name, "--quick", "--json")
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert rows
    for row in rows:
        check(row)
    if name == "recovery":
        assert [row["value"] for row in rows if "samples" in row["unit"]] == [0, 0]  # I3


def test_a_benchmark_that_cannot_run_here_says_why_and_exits_3(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
    )
    ended = run("exchange", "--quick", path=str(tmp_path))
    assert ended.returncode == 3
    assert ended.stdout == ""
    assert ended.stderr.strip() == (
        "it needs PyTorch, which is not installed here: pip install manyhands[torch]"
    )


@pytest.mark.skipif(not TEXT.exists(), reason=f"needs {TEXT.name} in shared/data/text beside this repository")
def test_the_storm_runs_in_its_smallest_setting_and_loses_nothing() -> None:
    ended = run("storm", "--quick", "--json")
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    for row in rows:
        check(row)
    assert [row["value"] for row in rows if row["unit"] in ("samples", "versions")] == [0, 0, 0]  # I2, I3
    assert rows[-1]["peer"] is not None, rows[-1]["note"]


@pytest.mark.parametrize("name", [*NAMES, "storm"])
def test_help_says_what_is_measured_and_in_which_setting(name: str) -> None:
    ended = run(name, "--help")
    assert ended.returncode == 0
    assert "--quick" in ended.stdout
    assert len(ended.stdout.split("options:")[0]) > 200


def test_a_library_that_cannot_be_measured_beside_has_a_row_that_says_why() -> None:
    program = (
        "import benchmarks.low_bandwidth as it\n"
        "from benchmarks.rows import CannotRun\n"
        "def interpreter(name):\n"
        "    raise CannotRun('it cannot be installed: no wheel')\n"
        "it.interpreter = interpreter\n"
        "row = it.beside('torchft', 'step', [1.0, 3.0, 2.0], {}, None)\n"
        "print(row.value, row.peer, row.note, sep=', ')\n"
    )
    said = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True, timeout=60)
    assert said.strip() == "2.0, None, torchft: it cannot be installed: no wheel"


def test_other_libraries_are_measured_on_the_pytorch_that_this_one_is_tested_with() -> None:
    ours = {line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch==")}
    for versions in (ROOT / "benchmarks" / "environments").iterdir():
        assert ours < set(versions.read_text().split()), versions.name
