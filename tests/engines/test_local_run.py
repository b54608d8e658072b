import gc
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from launching import STAND_IN_HUB
from processes import marked, until

from manyhands.engines.folder import note_failure, read_failures
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions
from manyhands.errors import ConfigurationError, MachineError, ManyhandsError, UserError

# In short sleeps: a signal that comes just before a sleep is seen by Python after it.
FOREVER = "import time\nprint('here', flush=True)\nwhile True:\n    time.sleep(0.02)\n"


def test_every_worker_gets_what_it_needs_to_join(launch, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    source = """
import json, os, sys
keep = {k: v for k, v in os.environ.items() if k.startswith(("MANYHANDS", "OMP", "EXTRA"))}
print(json.dumps({**keep, "args": sys.argv[1:], "path": sys.path[0]}))
"""
    heard = launch(source, workers=2, args=("--lr", "0.1"), env={"EXTRA": "1"}, patience=2.0)
    heard.run.start()
    outcome = heard.run.wait(30.0)
    assert (outcome.code, outcome.why) == (0, "finished")
    told = json.loads((tmp_path / "run" / "hub.json").read_text())
    seen = {name: json.loads(text) for name, _, text in heard.lines}
    assert sorted(seen) == ["0", "1"]
    for name, env in seen.items():
        assert env == {
            "MANYHANDS_HUB": told["url"],
            "MANYHANDS_TOKEN": told["token"],
            "MANYHANDS_RUN": "run",
            "MANYHANDS_NAME": name,
            "MANYHANDS_PATIENCE": "2.0",
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // 2)),
            "EXTRA": "1",
            "args": ["--lr", "0.1"],
            "path": str(tmp_path),
        }
    assert len(told["token"]) >= 24


def test_a_setting_of_the_user_for_threads_is_kept(launch, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    heard = launch("import os; print(os.environ['OMP_NUM_THREADS'])")
    heard.run.start()
    heard.run.wait(30.0)
    assert heard.lines == [("0", "stdout", "7")]


@pytest.mark.usefixtures("mark")
def test_a_run_folder_has_a_name_that_sorts_by_age(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("")
    options = LocalOptions("script.py", hub_command=STAND_IN_HUB)
    folders = []
    for _ in range(2):
        with LocalRun(options) as run:
            folders.append(run.folder)
            assert run.wait(30.0).code == 0
    assert folders[0] != folders[1]
    assert all(folder.parent == Path("runs") and (folder / "hub.json").exists() for folder in folders)


def test_a_killed_worker_is_started_again_and_it_is_said(launch):
    heard = launch(FOREVER, workers=2)
    with heard.run as run:
        until(lambda: heard.text("stdout").count("here") == 2)
        before = run.worker_pids
        run.kill_worker("1")
        until(lambda: heard.text("stdout").count("here") == 3)
        after = run.worker_pids
    assert after["0"] == before["0"]
    assert after["1"] != before["1"]
    assert heard.news[0] == "worker 1 was killed by SIGKILL; restart 1 of 5 in 0.5 s"


def test_restarts_take_longer_each_time_and_come_to_an_end_while_the_others_go_on(launch, tmp_path):
    source = f"""
import os, pathlib, sys, time
if os.environ["MANYHANDS_NAME"] == "1":
    sys.exit(3)
while not pathlib.Path({str(tmp_path / "enough")!r}).exists():
    time.sleep(0.01)
"""
    heard = launch(source, workers=2, max_restarts=2)
    with heard.run as run:
        until(lambda: len(heard.news) == 3)
        (tmp_path / "enough").touch()
        outcome = run.wait(30.0)
    assert heard.news == [
        "worker 1 ended with exit code 3; restart 1 of 2 in 0.5 s",
        "worker 1 ended with exit code 3; restart 2 of 2 in 1 s",
        "worker 1 ended with exit code 3 after 2 restarts: the others go on",
    ]
    assert (outcome.code, outcome.why) == (0, "finished without worker 1")
    assert outcome.restarts == {"0": 0, "1": 2}


def test_a_run_whose_workers_are_all_gone_has_failed(launch):
    heard = launch("import sys; sys.exit(3)", workers=2, max_restarts=0)
    heard.run.start()
    outcome = heard.run.wait(30.0)
    assert outcome.code == 1
    assert outcome.why == "no worker is left: all failed after 0 restarts"


def test_a_worker_that_contributed_is_soon_started_again_however_often(launch, tmp_path):
    source = f"""
import os, signal, sqlite3, time
with sqlite3.connect({str(tmp_path / "run" / "hub.db")!r}) as journal:
    journal.execute("INSERT INTO versions VALUES (1, ?, ?)", (time.time(), '{{"0": 32.0}}'))
os.kill(os.getpid(), signal.SIGKILL)
"""
    heard = launch(source, max_restarts=3)
    heard.run.start()
    assert heard.run.wait(30.0).code == 1
    assert [news.rpartition(" in ")[2] for news in heard.news[:3]] == ["0.5 s", "0.5 s", "0.5 s"]


@pytest.mark.parametrize("wait", ["0", "0.7 * int(os.environ['MANYHANDS_NAME'])"])
def test_a_script_that_fails_everywhere_ends_the_run_with_its_traceback_once(launch, wait):
    source = f"""
import os, time
time.sleep({wait})
raise ValueError("no luck in process %d" % os.getpid())
"""
    heard = launch(source, workers=3)
    heard.run.start()
    outcome = heard.run.wait(30.0)
    assert outcome.code == 1
    assert outcome.why.endswith("script.py failed on every worker before anything was learned")
    assert heard.text("stderr").count("Traceback (most recent call last):") == 1
    assert len([text for text in heard.text("stderr") if text.startswith("ValueError: no luck")]) == 1


def test_a_script_that_does_not_parse_ends_the_run_with_that_said_once(launch):
    heard = launch("def f(:\n", workers=2)
    heard.run.start()
    assert heard.run.wait(30.0).code == 1
    assert heard.text("stderr").count("SyntaxError: invalid syntax") == 1


@pytest.mark.parametrize(
    ("source", "said", "why"),
    [
        (
            "import argparse\nparser = argparse.ArgumentParser()\n"
            "parser.add_argument('--epochs', required=True)\nparser.parse_args()",
            ("usage: script.py [-h] --epochs EPOCHS", 1),
            "",
        ),
        (
            "import sys\nsys.exit('there is no folder data/')",
            ("there is no folder data/", 3),
            ": exit code 1: there is no folder data/",
        ),
        (
            "import sys, traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc()\n"
            "    sys.exit(4)",
            ("Traceback (most recent call last):", 1),
            "",
        ),
    ],
)
def test_a_script_that_ends_itself_everywhere_is_not_started_again(launch, source, said, why):
    heard = launch(source, workers=3)
    heard.run.start()
    outcome = heard.run.wait(30.0)
    assert outcome.code == 1
    assert outcome.why.endswith(f"script.py failed on every worker before anything was learned{why}")
    text, times = said
    assert heard.text("stderr").count(text) == times
    assert not [news for news in heard.news if "on every worker" not in news and "restart 2" in news]


def test_an_error_of_the_script_is_shown_once_though_some_workers_come_to_it_later(launch):
    source = """
import os, time
from manyhands import DiLoCo
time.sleep(2 + int(os.environ["MANYHANDS_NAME"]))
DiLoCo(every=0)
"""
    heard = launch(source, workers=2)
    heard.run.start()
    assert heard.run.wait(30.0).code == 1
    assert heard.news == []
    assert heard.text("stderr")[-1].startswith("manyhands.errors.StrategyError: Strategy: every=0 must be")
    assert [text for text in heard.text("stderr") if "File" in text] == [
        f'  File "{heard.run.options.script}", line 5, in <module>'
    ]


def test_an_error_that_another_start_would_meet_again_is_said_once_and_the_others_go_on(launch, tmp_path):
    source = f"""
import os, pathlib, time
from manyhands.errors import DataError
if os.environ["MANYHANDS_NAME"] == "1":
    raise DataError("data set 0 has length 7 here")
while not pathlib.Path({str(tmp_path / "enough")!r}).exists():
    time.sleep(0.01)
"""
    heard = launch(source, workers=2)
    with heard.run as run:
        until(lambda: heard.news)
        (tmp_path / "enough").touch()
        outcome = run.wait(30.0)
    assert heard.news == [
        "worker 1 failed for good, the others go on: manyhands.errors.DataError: data set 0 has length 7 here"
    ]
    assert (outcome.code, outcome.why) == (0, "finished without worker 1")
    assert outcome.restarts == {"0": 0, "1": 0}
    ((worker, (_, error)),) = read_failures(tmp_path / "run").items()
    assert (worker, error) == ("1", "manyhands.errors.DataError: data set 0 has length 7 here")
    assert heard.text("stderr").count("Traceback (most recent call last):") == 1


def test_a_failure_after_a_version_was_committed_is_a_reason_to_restart(launch, tmp_path):
    source = f"""
import sqlite3, time
with sqlite3.connect({str(tmp_path / "run" / "hub.db")!r}) as journal:
    journal.execute("INSERT INTO versions VALUES (1, ?, '{{}}')", (time.time(),))
raise ValueError("no luck")
"""
    heard = launch(source, max_restarts=1)
    heard.run.start()
    assert heard.run.wait(30.0).code == 1
    assert "worker 0 failed with ValueError: no luck; restart 1 of 1 in 0.5 s" in heard.news


def test_one_worker_that_fails_shows_its_traceback_once_with_its_name(launch, tmp_path):
    source = f"""
import os, pathlib, time
if os.environ["MANYHANDS_NAME"] == "1":
    raise ValueError("no luck")
while not pathlib.Path({str(tmp_path / "enough")!r}).exists():
    time.sleep(0.01)
"""
    heard = launch(source, workers=2, max_restarts=1)
    with heard.run as run:
        until(lambda: len(heard.news) == 2)
        (tmp_path / "enough").touch()
        assert run.wait(30.0).code == 0
    assert [name for name, _, text in heard.lines if text == "ValueError: no luck"] == ["1"]


def test_a_worker_that_comes_back_after_the_run_was_over_has_not_failed(launch, tmp_path):
    source = f"""
import os, pathlib, time
from manyhands.errors import RunOver
pid = pathlib.Path({str(tmp_path / "pid")!r})
if os.environ["MANYHANDS_NAME"] == "0":
    pid.with_suffix(".new").write_text(str(os.getpid()))
    pid.with_suffix(".new").rename(pid)
else:
    while not pid.exists() or pathlib.Path("/proc", pid.read_text()).exists():
        time.sleep(0.01)
    raise RunOver("run run has finished: there is nothing left to join")
"""
    heard = launch(source, workers=2)
    heard.run.start()
    outcome = heard.run.wait(30.0)
    assert (outcome.code, outcome.why) == (0, "finished")
    assert heard.text("stderr") == []
    assert heard.news == ["worker 1 came back after the run was over"]


JOURNAL = """
import os, pathlib, signal, sqlite3, sys, time
name, folder = os.environ["MANYHANDS_NAME"], pathlib.Path({folder!r})
journal = sqlite3.connect(folder / "hub.db", isolation_level=None)
journal.execute("CREATE TABLE IF NOT EXISTS events(at REAL, kind TEXT, who TEXT, text TEXT)")
def commit(number, *workers):
    names = ", ".join(f'"{{worker}}": 1.0' for worker in workers)
    journal.execute("INSERT INTO versions VALUES (?, ?, ?)", (number, time.time(), "{{" + names + "}}"))
def note(kind):
    journal.execute("INSERT INTO events VALUES (?, ?, ?, '')", (time.time(), kind, name))
def again():
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return True
def gone(worker):
    pid = int((folder / f"{{worker}}.pid").read_text())
    return not pathlib.Path("/proc", str(pid)).exists()
(folder / f"{{name}}.new").write_text(str(os.getpid()))
(folder / f"{{name}}.new").replace(folder / f"{{name}}.pid")
"""


@pytest.mark.parametrize("max_restarts", [0, 5])
@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
        ("raise OSError('the disk is full')", "failed with OSError: the disk is full"),
    ],
)
def test_a_worker_that_fails_after_the_end_of_the_training_is_not_started_again_and_fails_the_run(
    launch, tmp_path, end, how, max_restarts
):
    source = JOURNAL.format(folder=str(tmp_path / "run"))
    source += f"commit(1, '0')\nnote('finished')\nprint('here')\n{end}\n"
    heard = launch(source, max_restarts=max_restarts)
    heard.run.start()
    outcome = heard.run.wait(30.0)
    assert outcome.code == 1
    assert outcome.why == (
        f"worker 0 {how} after the training had ended: what its script does then, such as saving the model, "
        "was not done to its end"
    )
    assert heard.text("stdout") == ["here"]
    assert heard.news == []
    assert ("OSError: the disk is full" in heard.text("stderr")) == ("OSError" in how)


def test_a_worker_whose_restart_comes_after_the_end_of_the_training_fails_the_run(launch, tmp_path):
    source = JOURNAL.format(folder=str(tmp_path / "run"))
    source += """
if name == "0":
    print("here")
    commit(1, "0", "1")
    os.kill(os.getpid(), signal.SIGKILL)
while not (folder / "0.pid").exists() or not gone("0"):
    time.sleep(0.01)
note("finished")
"""
    heard = launch(source, workers=2)
    heard.run.start()
    outcome = heard.run.wait(30.0)
    assert outcome.code == 1
    assert outcome.why.startswith("worker 0 was killed by SIGKILL after the training had ended: what its")
    assert heard.text("stdout") == ["here"]


@pytest.mark.parametrize(("joins", "code"), [(True, 0), (False, 1)])
def test_a_worker_that_is_back_before_the_end_of_the_training_has_made_good_if_it_was_taken_in(
    launch, tmp_path, joins, code
):
    source = JOURNAL.format(folder=str(tmp_path / "run"))
    source += f"""
if not again():
    commit(1, "0")
    os.kill(os.getpid(), signal.SIGKILL)
if {joins}:
    note("joined")
note("finished")
"""
    heard = launch(source)
    heard.run.start()
    assert heard.run.wait(30.0).code == code


def test_a_worker_that_failed_before_the_last_version_has_missed_nothing(launch, tmp_path):
    source = JOURNAL.format(folder=str(tmp_path / "run"))
    source += """
if name == "0":
    commit(1, "0", "1")
    os.kill(os.getpid(), signal.SIGKILL)
while not (folder / "go on").exists():
    time.sleep(0.01)
commit(2, "1")
note("finished")
"""
    heard = launch(source, workers=2, max_restarts=0)
    with heard.run as run:
        until(lambda: heard.news)
        (tmp_path / "run" / "go on").touch()
        outcome = run.wait(30.0)
    assert (outcome.code, outcome.why) == (0, "finished without worker 0")


def test_a_traceback_that_is_logged_by_a_worker_that_finishes_is_passed_on(launch):
    source = """
import traceback
try:
    1 / 0
except ZeroDivisionError:
    traceback.print_exc()
print("went on")
"""
    heard = launch(source)
    heard.run.start()
    assert heard.run.wait(30.0).code == 0
    assert heard.text("stderr")[-1] == "ZeroDivisionError: division by zero"
    assert heard.text("stdout") == ["went on"]


def test_all_output_is_passed_on_to_the_last_line_without_end(launch):
    heard = launch("print('x' * 99)\n" * 500 + "print('end', end='')")
    heard.run.start()
    heard.run.wait(30.0)
    assert heard.text("stdout") == ["x" * 99] * 500 + ["end"]


def test_what_a_worker_started_does_not_outlive_it(launch, mark):
    source = "import subprocess, sys\nsubprocess.Popen(['sleep', '600'])\nprint('here', flush=True)\n"
    heard = launch(source + "import time; time.sleep(600)", workers=1)
    with heard.run as run:
        until(lambda: "here" in heard.text("stdout"))
        sleeping = [process for process in marked(mark) if process.name() == "sleep"]
        assert len(sleeping) == 1
        run.kill_worker("0")
        until(lambda: not sleeping[0].is_running())


def test_a_killed_hub_is_started_again_on_the_same_folder(launch, tmp_path):
    heard = launch(FOREVER)
    with heard.run as run:
        before = run.hub_pid
        workers = run.worker_pids
        run.kill_hub()
        until(lambda: (tmp_path / "run" / "hubs.txt").read_text().count("\n") == 2)
        assert run.hub_pid != before
        assert run.worker_pids == workers
    assert heard.news[0] == f"the hub was killed by SIGKILL; restarting it on {tmp_path / 'run'}"


def test_a_hub_that_does_not_start_is_told_in_its_own_words(launch):
    heard = launch(FOREVER, env={"STAND_IN_HUB": "port 80 is in use: give another --port"})
    with pytest.raises(
        MachineError, match="the hub ended with exit code 1 before it was ready: port 80 is in"
    ):
        heard.run.start()


def test_a_hub_that_is_never_ready_is_not_waited_for_for_ever(launch):
    heard = launch(
        FOREVER, hub_command=(sys.executable, "-c", "import time; time.sleep(600)"), hub_deadline=0.5
    )
    with pytest.raises(MachineError, match="the hub was not ready after"):
        heard.run.start()


def test_stopping_lets_workers_leave_in_order(launch):
    source = """
import signal, sys, time
def leave(*_):
    print("left", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
"""
    heard = launch(source + FOREVER, workers=2)
    heard.run.start()
    until(lambda: len(heard.lines) == 2)
    heard.run.stop(130, "stopped by SIGINT")
    outcome = heard.run.wait(30.0)
    assert (outcome.code, outcome.why) == (130, "stopped by SIGINT")
    assert heard.text("stdout").count("left") == 2
    assert heard.news == []


def test_a_worker_that_does_not_leave_is_killed_and_it_is_said(launch):
    source = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
    heard = launch(source, grace=0.5)
    heard.run.start()
    until(lambda: heard.lines)
    heard.run.stop()
    assert heard.run.wait(30.0).code == 143
    assert heard.news == ["killing worker 0: still there 0.5 s after SIGTERM"]


def test_killing_waits_for_nobody(launch):
    source = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
    heard = launch(source, workers=2, grace=600.0)
    heard.run.start()
    until(lambda: len(heard.lines) == 2)
    heard.run.stop()
    heard.run.kill()
    assert heard.run.wait(20.0).code == 143
    assert heard.news == []


def test_a_late_worker_can_be_added(launch):
    heard = launch(FOREVER)
    with heard.run as run:
        run.add_worker("late")
        until(lambda: {name for name, _, _ in heard.lines} == {"0", "late"})
        assert sorted(run.worker_pids) == ["0", "late"]


def test_a_worker_of_a_hub_elsewhere_needs_no_hub_of_its_own(launch):
    source = (
        "import os; print(*(os.environ['MANYHANDS_' + name] for name in ('HUB', 'TOKEN', 'RUN', 'NAME')))"
    )
    heard = launch(source, folder=None, hub="http://far:7000", token="secret", run="theirs", names=("lab-1",))
    heard.run.start()
    assert heard.run.wait(30.0).code == 0
    assert heard.lines == [("lab-1", "stdout", "http://far:7000 secret theirs lab-1")]
    assert heard.run.folder is None


@pytest.mark.faults
def test_a_launcher_that_is_killed_leaves_nothing(mark, tmp_path):
    (tmp_path / "script.py").write_text("import subprocess\nsubprocess.Popen(['sleep', '600'])\n" + FOREVER)
    (tmp_path / "launcher.py").write_text(f"""
from pathlib import Path
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions
options = LocalOptions({str(tmp_path / "script.py")!r}, workers=2, folder=Path({str(tmp_path / "run")!r}),
    hub_command={STAND_IN_HUB!r})
run = LocalRun(options, lambda *line: print(*line, flush=True))
run.start()
run.wait()
""")
    launcher = subprocess.Popen(
        [sys.executable, str(tmp_path / "launcher.py")], stdout=subprocess.PIPE, text=True
    )
    with launcher:
        assert launcher.stdout is not None
        assert [launcher.stdout.readline().split()[-1] for _ in range(2)] == ["here", "here"]
        # launcher, guard, hub, two workers and their two children
        until(lambda: len(marked(mark)) == 7)
        launcher.send_signal(signal.SIGKILL)
    until(lambda: marked(mark) == [])


@pytest.mark.faults
def test_without_its_guard_a_killed_launcher_leaves_neither_hub_nor_workers(mark, tmp_path):
    (tmp_path / "script.py").write_text(FOREVER)
    source = f"""
from pathlib import Path
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions
options = LocalOptions({str(tmp_path / "script.py")!r}, workers=2, folder=Path({str(tmp_path / "run")!r}),
    hub_command={STAND_IN_HUB!r})
LocalRun(options, lambda *line: print(*line, flush=True)).start()
import time
time.sleep(600)
"""
    launcher = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    with launcher:
        assert launcher.stdout is not None
        assert [launcher.stdout.readline().split()[-1] for _ in range(2)] == ["here", "here"]
        guards = [process for process in marked(mark) if "guard.py" in " ".join(process.cmdline())]
        assert len(guards) == 1
        guards[0].kill()
        launcher.send_signal(signal.SIGKILL)
    until(lambda: marked(mark) == [])


def test_two_launchers_do_not_share_a_folder(launch):
    heard = launch(FOREVER)
    with heard.run, pytest.raises(ConfigurationError, match="another `manyhands run` works in"):
        launch("").run.start()


def test_a_folder_whose_run_has_ended_is_refused_with_when_and_how(launch, tmp_path):
    (tmp_path / "run").mkdir()
    with closing(sqlite3.connect(tmp_path / "run" / "hub.db")) as journal, journal:
        journal.execute("CREATE TABLE events(at REAL, kind TEXT, text TEXT)")
        journal.execute("INSERT INTO events VALUES (0, 'joined', 'worker 0')")
        journal.execute("INSERT INTO events VALUES (1.8e9, 'stopped', 'every worker was told to end')")
    ended = r"stopped at 2027-01-1\d .* \(every worker was told to end\): choose another --folder"
    for _ in range(2):  # the folder is not held by who was refused
        with pytest.raises(ConfigurationError, match=ended):
            launch("").run.start()


def test_a_run_that_is_lost_is_not_laid_to_the_script(launch):
    heard = launch("from manyhands.errors import RunLost\nraise RunLost('version 7 is lost')", workers=2)
    heard.run.start()
    outcome = heard.run.wait(30.0)
    assert (outcome.code, outcome.why) == (1, "version 7 is lost")
    assert heard.text("stderr") == heard.news == []


def test_what_failed_in_an_earlier_start_on_the_folder_is_forgotten(launch, tmp_path):
    (tmp_path / "run").mkdir()
    note_failure(tmp_path / "run", "0", "ValueError: no luck")
    heard = launch("")
    heard.run.start()
    assert heard.run.wait(30.0).code == 0
    assert read_failures(tmp_path / "run") == {}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"workers": 0}, ConfigurationError, "0 workers cannot run anything"),
        ({"max_restarts": -1}, ConfigurationError, "--max-restarts -1"),
        ({"lease": 0.0}, ConfigurationError, "--lease 0.0"),
        ({"port": 70000}, ConfigurationError, "--port 70000"),
        ({"patience": float("nan")}, ConfigurationError, "--patience nan"),
        ({"names": ("a", "a"), "workers": 2}, ConfigurationError, "as many different names"),
        ({"hub": "http://far:7000"}, ConfigurationError, "wants a token"),
        ({"folder": Path("/proc/nowhere")}, MachineError, "cannot be written"),
        ({"folder": Path(__file__) / "run"}, MachineError, "cannot be written"),
    ],
)
def test_what_cannot_work_is_told_in_one_sentence(launch, options, error, words):
    with pytest.raises(error, match=words) as told:
        launch("", **options).run.start()
    assert "\n" not in str(told.value)


def test_a_script_that_is_not_there_is_named(tmp_path):
    for script, words in ((tmp_path / "nope.py", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=words):
            LocalRun(LocalOptions(script)).start()


def test_a_worker_that_does_not_run_cannot_be_killed(launch):
    with launch(FOREVER).run as run, pytest.raises(ManyhandsError, match="no worker 7 runs just now"):
        run.kill_worker("7")


@pytest.mark.usefixtures("mark")
def test_when_lines_cannot_be_shown_nothing_is_left_behind(tmp_path):
    (tmp_path / "script.py").write_text(FOREVER)

    def refuse(*_):
        raise RuntimeError("nobody listens")

    run = LocalRun(
        LocalOptions(tmp_path / "script.py", workers=2, folder=tmp_path / "run", hub_command=STAND_IN_HUB),
        refuse,
    )
    run.start()
    with pytest.raises(RuntimeError, match="nobody listens"):
        run.wait(30.0)


def test_no_thread_and_no_descriptor_is_left(launch, tmp_path):
    def one(name):
        heard = launch("print('x')", workers=2, folder=tmp_path / name)
        heard.run.start()
        assert heard.run.wait(30.0).code == 0

    one("first")
    gc.collect()
    before = psutil.Process().num_fds(), threading.active_count()
    one("second")
    one("third")
    assert (psutil.Process().num_fds(), threading.active_count()) == before
