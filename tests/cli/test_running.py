import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from launching import STAND_IN_HUB
from processes import marked, until

STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
POLITE = """
import signal, sys
def leave(*_):
    print("left", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, leave)
"""
# In short sleeps: a signal that comes just before a sleep is seen by Python after it.
FOREVER = "import time\nprint('here', flush=True)\nwhile True:\n    time.sleep(0.02)\n"


class Launcher:
    """`supervise` in a process of its own, its lines as they come."""

    def __init__(self, folder, source, workers, stdout):
        (folder / "script.py").write_text(source)
        program = f"""
import sys
from pathlib import Path
from manyhands.cli.running import supervise
from manyhands.engines.options import LocalOptions
sys.exit(supervise(LocalOptions({str(folder / "script.py")!r}, workers={workers}, max_restarts=1,
    folder=Path({str(folder / "run")!r}), hub_command={STAND_IN_HUB!r}), plain=False))
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=stdout, stderr=subprocess.STDOUT, text=True
        )
        self.lines = []

    def read_until(self, text, times=1):
        """Reads until a line with this text has come so often."""
        while sum(text in line for line in self.lines) < times:
            line = self.process.stdout.readline()
            assert line, f"{text!r} did not come: {self.lines}"
            self.lines.append(line.rstrip("\n"))

    def end(self):
        """Reads to the end; the exit code."""
        self.lines += self.process.stdout.read().splitlines()
        return self.process.wait(timeout=30.0)


@pytest.fixture
def launcher(mark, tmp_path):
    assert mark

    @contextmanager
    def launch(source, workers=2, stdout=subprocess.PIPE):
        launcher = Launcher(tmp_path, source, workers, stdout)
        try:
            with launcher.process:
                yield launcher
                launcher.process.kill()
        finally:
            launcher.process.kill()

    return launch


def test_a_run_that_finishes_says_so_and_ends_with_0(launcher, tmp_path):
    with launcher("print('hello')") as run:
        assert run.end() == 0
    assert sorted(run.lines[:2]) == ["[0] hello", "[1] hello"]
    assert run.lines[2].startswith("manyhands: finished after ")
    assert run.lines[3] == f"manyhands: report: {tmp_path / 'run' / 'report.html'}"


def test_a_script_that_fails_everywhere_shows_its_traceback_once_and_ends_with_1(launcher):
    with launcher("raise ValueError('no luck')", workers=4) as run:
        assert run.end() == 1
    assert run.lines.count("Traceback (most recent call last):") == 1
    assert run.lines.count("ValueError: no luck") == 1
    assert any("script.py failed on every worker before anything was learned" in line for line in run.lines)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_lets_everybody_leave(launcher, number):
    with launcher(POLITE + FOREVER) as run:
        run.read_until("here", times=2)
        run.process.send_signal(number)
        assert run.end() == 128 + number
    assert sum("left" in line for line in run.lines) == 2
    assert any(line.startswith(f"manyhands: stopped by {number.name} after ") for line in run.lines)


@pytest.mark.faults
def test_the_second_signal_kills(launcher, mark):
    with launcher(STUBBORN + FOREVER) as run:
        run.read_until("here", times=2)
        run.process.send_signal(signal.SIGINT)
        run.read_until("Ctrl-C again kills at once")
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130
    assert marked(mark) == []


@pytest.mark.faults
def test_ctrl_c_at_a_terminal_reaches_the_launcher_alone(mark, tmp_path):
    """The terminal sends SIGINT to its foreground group; workers that got it would print tracebacks."""
    ours, theirs = pty.openpty()
    (tmp_path / "script.py").write_text(POLITE + FOREVER)
    program = f"""
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from pathlib import Path
from manyhands.cli.running import supervise
from manyhands.engines.options import LocalOptions
sys.exit(supervise(LocalOptions({str(tmp_path / "script.py")!r}, workers=2,
    folder=Path({str(tmp_path / "run")!r}), hub_command={STAND_IN_HUB!r}), plain=False))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen = b""
    asked = False
    with process:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other end has been closed by all
                break
            seen += data
            if not asked and seen.count(b"here") == 2:
                asked = True
                os.write(ours, b"\x03")
        assert process.wait(timeout=30.0) == 130
    os.close(ours)
    assert seen.count(b"left") == 2
    assert b"KeyboardInterrupt" not in seen
    until(lambda: marked(mark) == [])


@pytest.mark.faults
def test_a_launcher_that_is_killed_leaves_nothing_of_a_run_behind(launcher, mark):
    with launcher("import subprocess\nsubprocess.Popen(['sleep', '600'])\n" + FOREVER) as run:
        run.read_until("here", times=2)
        run.process.kill()
        until(lambda: marked(mark) == [])


def test_a_reader_of_the_output_that_goes_away_ends_the_run(launcher, mark):
    source = "import time\nwhile True:\n    print('here', flush=True)\n    time.sleep(0.01)\n"
    with launcher(source) as run:
        run.read_until("here")
        run.process.stdout.close()
        assert run.process.wait(timeout=30.0) == 141
    assert marked(mark) == []


def test_the_launcher_imports_nothing_heavy():
    program = """
import sys, json
import manyhands.cli.main, manyhands.cli.running
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", program], text=True))
    assert {"torch", "numpy", "starlette", "uvicorn", "websockets"}.isdisjoint(loaded)
