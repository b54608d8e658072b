"""`manyhands chaos`: real faults to real processes, and what is said of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from manyhands.cli import chaos
from manyhands.cli.client import HubClient
from manyhands.cli.main import app
from manyhands.core.decisions import Note
from manyhands.core.storm import Fault
from manyhands.engines.chaos import Injector
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions
from manyhands.hub.address import Address, sole, write_address
from manyhands.hub.journal import Journal
from manyhands.worker.testimony import VARIABLE

pytestmark = pytest.mark.faults

SCRIPT = """
import sys, time
import numpy as np
import manyhands as mh

rng = np.random.default_rng(0)
x = rng.normal(size=(6000, 8)).astype(np.float32)
y = x @ np.arange(8, dtype=np.float32)
pool = mh.join()
params = {"w": np.zeros(8, np.float32)}
batches = pool.partition((x, y), batch_size=10, epochs=int(sys.argv[2]))
with pool.share(params, strategy=eval("mh." + sys.argv[1])) as shared:
    for xs, ys in batches:
        error = xs @ params["w"] - ys
        gradients = shared.average({"w": 2 * xs.T @ error / len(xs)})
        params["w"] -= 0.01 * gradients["w"]
        shared.step()
        shared.log(loss=np.mean(error**2))
        time.sleep(0.02)
"""


def storm(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    (folder / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "manyhands", "chaos", "--folder", str(folder / "run"), *arguments],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    return done, json.loads((folder / "run" / "chaos.json").read_text())


@pytest.mark.parametrize("strategy", ["EveryStep()", "DiLoCo(5)"])
def test_a_storm_costs_time_and_no_sample_and_flipped_bits_are_found(tmp_path: Path, strategy: str) -> None:
    faults = ("--faults", "kill,corrupt,stop,kill-hub", "--every", "1.2", "--seconds", "11", "--lease", "2")
    done, found = storm(tmp_path, "-n", "3", *faults, str(tmp_path / "train.py"), strategy, "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["samples"] == {
        "committed": 12000,
        "total": 12000,
        "lost": 0,
        "twice": 0,
        "unreached": 0,
        "by": "the workers",
    }
    assert found["digests"]["equal"]
    assert (found["digests"]["unwitnessed"], found["digests"]["results"]) == (0, 1)
    assert set(found["done"]) == {"kill", "corrupt", "stop", "kill-hub"}
    assert found["ratio"] > 0
    assert found["recovery"]["worst"] < 30
    assert found["loss"]["storm"] == pytest.approx(found["loss"]["undisturbed"], abs=0.05)
    assert "0 lost, 0 twice, of 12,000, by the workers" in done.stdout
    assert max(able for _, _, able in found["counts"]["processes"]) == 3.0
    assert {combined for _, _, combined in found["counts"]["versions"]} >= {2, 3}
    assert "<h2>the storm</h2>" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("strategy", ["EveryStep()", "DiLoCo(5)"])
def test_flipped_bits_are_found_and_who_holds_them_goes_and_heals(tmp_path: Path, strategy: str) -> None:
    faults = ("--no-baseline", "--faults", "corrupt", "--every", "1.5", "--seconds", "6")
    done, found = storm(tmp_path, "-n", "3", *faults, str(tmp_path / "train.py"), strategy, "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["flipped"]["done"] >= 2
    assert found["flipped"]["found"] >= 1  # one that hits a state that is healed just then does nothing
    assert found["flipped"]["shown"] >= 1 or strategy == "DiLoCo(5)"  # its holder may find it first
    assert found["digests"]["equal"]


def test_what_the_injector_says_is_what_it_saw_of_the_processes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "run" / "chaos").mkdir(parents=True)
    options = LocalOptions(
        tmp_path / "train.py",
        ("DiLoCo(5)", "2"),
        workers=2,
        folder=tmp_path / "run",
        env={VARIABLE: str(tmp_path / "run" / "chaos")},
    )
    run = LocalRun(options)

    class Target:
        def workers(self) -> dict[str, int]:
            return run.worker_pids

        def hub(self) -> int | None:
            return run.hub_pid

        def port(self, _: str) -> int | None:
            return None

    faults = (Fault(0.5, "stop", 0, 1.0), Fault(0.7, "cut", 1), Fault(2.5, "kill", 0))
    said = tmp_path / "run" / "chaos"
    injector = Injector(Target(), faults, said, 0)
    with run:
        deadline = time.monotonic() + 60
        while len(list(said.glob("*.held"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        injector.start()
        while not injector.through and time.monotonic() < deadline:
            time.sleep(0.05)
        injector.stop()
        run.kill()
    assert [(fault["kind"], bool(fault["failed"])) for fault in injector.done] == [
        ("stop", False),
        ("cut", True),
        ("kill", False),
    ]
    assert 1.0 in {able for _, processes, able in injector.alive if processes == 2}
    assert 2.0 in {able for _, processes, able in injector.alive if processes == 2}


def test_a_training_that_fails_is_not_sound_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import manyhands as mh; mh.join(); raise ValueError('of its own')")
    command = [sys.executable, "-m", "manyhands", "chaos", "-n", "1", "--every", "1", "--seconds", "2"]
    for baseline, code, words in (("--no-baseline", 1, "of its own"), ("--baseline", 2, "mend that first")):
        folder = tmp_path / str(code)
        done = subprocess.run(
            [*command, baseline, "--folder", str(folder), str(tmp_path / "train.py")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert words in " ".join((done.stdout + done.stderr).split())
        assert (folder / "chaos.json").exists() == (code == 1)


def test_hubs_killed_on_purpose_do_not_count_against_what_a_run_puts_up_with(tmp_path: Path) -> None:
    script, folder = tmp_path / "train.py", tmp_path / "run"
    script.write_text(SCRIPT)
    options = LocalOptions(script, ("LocalSGD(5)", "3"), workers=2, folder=folder, hub_restarts=0)
    assert chaos.storm(options, 0, every=1.0, seconds=2.5, kinds="kill-hub", baseline=False) == 0
    assert json.loads((folder / "chaos.json").read_text())["done"] == {"kill-hub": 2}


def test_no_process_is_disturbed_that_is_none_of_the_run_whatever_its_number(tmp_path: Path) -> None:
    class Hub:
        """It was told numbers by workers, one of them on another host."""

        def workers(self) -> list[dict[str, object]]:
            return [
                {"name": "here", "state": "member", "pid": ours.pid},
                {"name": "elsewhere", "state": "member", "pid": other.pid},
                {"name": "gone", "state": "lost", "pid": ours.pid},
            ]

    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    folder = tmp_path / "run"
    folder.mkdir()
    address = Address("http://127.0.0.1:1", os.getpid(), "run", "secret", 1)
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, env={"MANYHANDS_TOKEN": "secret"}) as ours,
        subprocess.Popen(command, stdin=subprocess.PIPE, env={"MANYHANDS_TOKEN": "secrets"}) as other,
    ):
        run = chaos.OtherRun(cast(HubClient, Hub()), "secret", folder)
        deadline = time.monotonic() + 20
        while not run.workers() and time.monotonic() < deadline:  # a new process has its parent's at first
            time.sleep(0.01)
        assert run.workers() == {"here": ours.pid}
        write_address(folder, address)
        assert run.hub() is None, "a file is left, and its process is another one by now"
        with sole(folder):
            assert run.hub() == os.getpid()


def test_a_run_that_goes_on_is_judged_by_its_ledger(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    options = LocalOptions(
        tmp_path / "train.py", ("DiLoCo(5)", "50"), workers=2, folder=tmp_path / "run", lease=2.0
    )
    with LocalRun(options) as run:
        client, deadline = HubClient(run.url, run.token), time.monotonic() + 60
        while client.run()["version"]["number"] < 10 and time.monotonic() < deadline:
            time.sleep(0.05)
        faults = ("--faults", "stop", "--every", "1", "--seconds", "4", "--lease", "2")
        done = subprocess.run(
            [sys.executable, "-m", "manyhands", "chaos", "--attach", str(tmp_path / "run"), *faults],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        run.kill()
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "run" / "chaos.json").read_text())
    assert set(found["done"]) == {"stop"}
    assert (found["samples"]["by"], found["samples"]["twice"], found["digests"]) == ("the ledger", 0, None)
    assert max(processes for _, processes, _ in found["counts"]["processes"]) == 2
    assert found["capacity"] < 1
    assert found["ratio"] > 0


def test_a_fault_that_there_is_not_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    (tmp_path / "train.py").write_text(SCRIPT)
    said = CliRunner().invoke(app, ["chaos", "--faults", "flood", str(tmp_path / "train.py")])
    assert said.exit_code == 2
    assert "kill, stop, slow, cut, corrupt, kill-hub" in said.output


def test_a_storm_without_a_fault_or_over_a_run_that_has_ended_is_refused(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    (tmp_path / "train.py").write_text(SCRIPT)
    said = CliRunner().invoke(app, ["chaos", "--seconds", "5", str(tmp_path / "train.py")])
    assert said.exit_code == 2
    assert "a storm of 5 s with a fault every 5 s has none" in " ".join(said.output.split())
    with Journal(tmp_path / "hub.db") as journal:
        journal.write([(1.0, Note("finished", "", "every worker has finished"))])
    said = CliRunner().invoke(app, ["chaos", "--attach", str(tmp_path), "--seconds", "20"])
    assert said.exit_code == 2
    assert "finished at 1970-01-01" in said.output
