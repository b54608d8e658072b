import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from canned_hub import TOKEN, canned_hub
from processes import marked, until

COMMANDS = ("run", "hub", "join", "status", "report", "version")


@pytest.fixture
def manyhands(mark, tmp_path, monkeypatch):
    """manyhands(*arguments): the command in an empty folder, its output as text."""
    assert mark
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MANYHANDS")]:
        monkeypatch.delenv(name)

    def run(*arguments, **more):
        command = [sys.executable, "-m", "manyhands", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60.0, **more)

    return run


def test_help_names_every_command_and_how_to_begin(manyhands):
    shown = manyhands("--help")
    assert shown.returncode == 0
    assert all(f" {command} " in shown.stdout for command in COMMANDS)
    assert "manyhands run -n 4 train.py" in shown.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(manyhands, command):
    shown = manyhands(command, "--help")
    assert shown.returncode == 0
    assert re.search(rf"Example.*manyhands {command}", shown.stdout, re.DOTALL)


def test_the_version_is_printed(manyhands):
    assert re.fullmatch(r"manyhands \d+\.\d+\.\d+\n", manyhands("version").stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "nope.py"), 2, "the script nope.py does not exist"),
        (("run", "-n", "0", "train.py"), 2, "0 workers cannot run anything"),
        (
            ("run", "--folder", "/proc/nowhere", "train.py"),
            1,
            "the run folder /proc/nowhere cannot be written",
        ),
        (("join", "--hub", "http://localhost:1", "--token", "t", "train.py"), 1, "no hub answers at"),
        (("join", "--hub", "http://localhost:1", "train.py"), 2, "wants a token"),
        (("join", "--hub", "far", "--token", "t", "train.py"), 2, "give it as http://HOST:PORT"),
        (("status",), 2, "no run in runs/ yet"),
        (("status", "r9"), 2, "no run at r9 or runs/r9"),
        (("status", "--hub", "http://localhost:1"), 2, "wants a token"),
        (("status", "r9", "--hub", "http://localhost:1"), 2, "not both"),
        (("report", "r9"), 2, "no run at r9 or runs/r9"),
        (("chaos", "--every", "0", "train.py"), 2, "--every 0 makes no sense: give seconds, more than 0"),
        (("chaos", "--faults", "flood", "train.py"), 2, "give some of kill, stop, slow, cut, corrupt"),
        (("chaos", "--attach", "r9"), 2, "no run at r9 or runs/r9"),
        (("chaos",), 2, "give a training script to disturb, or --attach RUN"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_no_traceback(manyhands, arguments, code, words):
    Path("train.py").write_text("")
    shown = manyhands(*arguments)
    assert shown.returncode == code
    assert words in shown.stderr
    assert shown.stderr.startswith("manyhands: ")
    assert shown.stderr.count("\n") == 1
    assert shown.stdout == ""


@pytest.mark.parametrize(
    "arguments", [("run",), ("run", "--nope", "x.py"), ("run", "-n", "four", "x.py"), ("no",)]
)
def test_a_wrong_command_line_ends_with_2(manyhands, arguments):
    shown = manyhands(*arguments)
    assert shown.returncode == 2
    assert "Traceback" not in shown.stderr


def test_options_after_the_script_are_the_scripts(manyhands):
    Path("train.py").write_text("import sys; print(*sys.argv[1:])")
    shown = manyhands("run", "train.py", "-n", "9", "--folder", "x", "--help")
    assert "[0] -n 9 --folder x --help\n" in shown.stdout
    assert shown.returncode == 0


def test_a_run_leaves_its_folder_and_says_where(manyhands):
    Path("train.py").write_text("import time; print('hello')")
    shown = manyhands("run", "-n", "2", "train.py")
    assert shown.returncode == 0, shown.stderr
    assert sorted(shown.stdout.splitlines()) == ["[0] hello", "[1] hello"]
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", folder.name)
    assert {"hub.db", "hub.json", "summary.json", "report.html"} <= {path.name for path in folder.iterdir()}
    assert f"report: {folder}/report.html" in shown.stderr
    assert (folder / "hub.json").stat().st_mode & 0o077 == 0
    for name in ((), (folder.name,), (folder,)):
        assert folder.name in manyhands("status", *name).stdout
    assert manyhands("report", folder.name).stdout.rstrip().endswith("report.html")


def test_the_status_has_the_error_with_which_the_script_failed(manyhands):
    Path("train.py").write_text("raise ValueError('no luck')")
    assert manyhands("run", "-n", "2", "train.py").returncode == 1
    shown = manyhands("status").stdout
    assert re.search(r"the script failed\s.*(0, 1|1, 0) +ValueError: no luck", shown, re.DOTALL)


def test_the_status_of_a_hub_is_shown(manyhands):
    with canned_hub() as url:
        shown = manyhands("status", "--hub", url, "--token", TOKEN)
        refused = manyhands("status", "--hub", url, "--token", "wrong")
    assert shown.returncode == 0
    for word in ("r1", "training", "last rounds", "not a number", "what happened", "its connection broke"):
        assert word in shown.stdout
    assert refused.returncode == 2
    assert "does not know this token" in refused.stderr


def test_a_worker_joins_the_run_of_a_hub_elsewhere(manyhands):
    Path("train.py").write_text(
        "import os; print(*(os.environ['MANYHANDS_' + name] for name in ('HUB', 'TOKEN', 'RUN', 'NAME')),"
        " os.environ.get('MANYHANDS_HOST', ''))"
    )
    with canned_hub() as url:
        env = {**os.environ, "MANYHANDS_TOKEN": TOKEN}
        shown = manyhands("join", "--hub", url, "--name", "lab", "train.py", env=env)
        elsewhere = manyhands(
            "join", "--hub", url, "--host", "10.0.0.7", "--name", "lab", "train.py", env=env
        )
        refused = manyhands("join", "--hub", url, "--token", "wrong", "train.py")
    assert elsewhere.stdout == f"[lab] {url} {TOKEN} r1 lab 10.0.0.7\n"
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == f"[lab] {url} {TOKEN} r1 lab \n"
    assert refused.returncode == 2
    assert "does not know this token" in refused.stderr
    assert not Path("runs").exists()


@pytest.mark.faults
def test_a_hub_alone_prints_the_line_that_joins_it(manyhands, mark):
    Path("train.py").write_text("print('joined')")
    process = subprocess.Popen(
        [sys.executable, "-m", "manyhands", "hub", "--expected", "3"], stdout=subprocess.PIPE, text=True
    )
    with process:
        told = dict(process.stdout.readline().split(maxsplit=1) for _ in range(4))
        line = told["join"].split()
        assert line[1:4] == ["manyhands", "join", "--hub"]
        env = {**os.environ, "MANYHANDS_TOKEN": told["token"].strip()}
        shown = manyhands("join", "--hub", line[4], "train.py", env=env)
        assert "joined" in shown.stdout
        status = manyhands("status")
        assert told["run"].split()[0] in status.stdout
        busy = manyhands("hub", "--port", told["hub"].strip().rpartition(":")[2])
        assert busy.returncode == 1
        assert "is in use" in busy.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30.0) == 0
    until(lambda: marked(mark) == [])
