"""What cannot work, end to end: one sentence with the remedy, and nothing that was committed is lost."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from invariants import assert_all
from training import Training

pytestmark = pytest.mark.faults

SMALL = """
import os
import numpy as np
OTHER = os.environ["MANYHANDS_NAME"] == "odd"
{first}
import manyhands as mh
pool = mh.join()
x = np.ones(({length}, 4), np.float32)
params = {{"w": np.zeros({width}, np.float32)}}
batches = pool.partition((x,), batch_size=4)
with pool.share(params, strategy={strategy}) as shared:
    for (xs,) in batches:
        params["w"] += shared.average({{"w": np.ones_like(params["w"])}})["w"]
        shared.step()
"""
RIGHT = {"first": "", "length": "400", "width": "4", "strategy": "mh.LocalSGD(2)"}


def script(folder: Path, name: str = "odd.py", **parts: str) -> Path:
    path = folder / name
    path.write_text(SMALL.format(**{**RIGHT, **parts}))
    return path


def manyhands(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "manyhands", *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60.0,
    )


def python(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60.0,
    )


def assert_one_sentence(said: str, error: str, sentence: str) -> None:
    """The traceback is there once, and ends in the sentence."""
    assert said.count("Traceback (most recent call last)") == 1, said
    endings = re.findall(rf"^(?:\[\w+\] )?manyhands\.errors\.{error}: (.*)$", said, re.MULTILINE)
    assert len(endings) == 1, said
    assert re.fullmatch(sentence, endings[0]), endings[0]


@pytest.mark.parametrize(
    ("parts", "error", "sentence"),
    [
        (
            {"length": "401"},
            "DataError",
            r"data set 0 has length 401 here and 4800 on the other workers; every worker must call "
            r"partition with the same data and the same arguments",
        ),
        (
            {"length": "4800"},
            "DataError",
            r"data set 0 has batch_size 4 here and 8 on the other workers; .*",
        ),
        (
            {"first": "import manyhands._version; manyhands._version.__version__ = '9.9.9'"},
            "VersionMismatch",
            r"worker odd runs manyhands 9\.9\.9, the hub runs \S+: install manyhands==\S+ there",
        ),
    ],
)
def test_a_joiner_that_does_not_fit_is_told_why_and_the_others_go_on(
    tmp_path: Path, parts: dict[str, str], error: str, sentence: str
) -> None:
    with Training(tmp_path, "mh.LocalSGD(2)", workers=2) as training:
        training.until_committed(100)
        joined = manyhands(
            *("join", "--hub", training.run.url, "--name", "odd", script(tmp_path, **parts)),
            MANYHANDS_TOKEN=training.run.token,
        )
        ran = training.end()
    assert joined.returncode == 1
    assert_one_sentence(joined.stderr, error, sentence)
    assert_all(ran)
    assert not ran.summary["faults"]
    assert [(event.who, event.kind) for event in ran.of_kind("refused")] in (
        [("odd", "refused")],
        [("", "refused")],
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ('{"w": np.zeros(12', '{"w": np.zeros(13'),
            r"worker odd has w \(13,\) float32, the others w \(12,\) float32: .* on every worker",
        ),
        (
            (
                '{"w": np.zeros(12, np.float32)}',
                '{"w": np.zeros(12, np.float32), "b": np.zeros(1, np.float32)}',
            ),
            r"worker odd shares 2 tensors, the others 1: .* on every worker",
        ),
        (
            ("mh.LocalSGD(2)", "mh.LocalSGD(3)"),
            r"worker odd shares with LocalSGD\(every=3\), the others with LocalSGD\(every=2\): give every .*",
        ),
    ],
)
def test_a_joiner_with_another_model_or_strategy_is_told_how_it_differs(
    tmp_path: Path, change: tuple[str, str], sentence: str
) -> None:
    with Training(tmp_path, "mh.LocalSGD(2)", workers=2) as training:
        training.until_committed(100)
        (tmp_path / "odd").mkdir()
        odd = tmp_path / "odd" / "train.py"
        odd.write_text(training.script.read_text().replace(*change))
        joined = manyhands(
            *("join", "--hub", training.run.url, "--name", "odd", odd),
            **{**training.environment, "MANYHANDS_TOKEN": training.run.token},
        )
        ran = training.end()
    assert joined.returncode == 1
    assert_one_sentence(joined.stderr, "ModelError", sentence)
    assert_all(ran)
    assert not ran.summary["faults"]


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        ("mh.DiLoCo(every=0)", r".*every=0 must be a whole number of local steps, 1 or more, or seconds.*"),
        ("mh.LocalSGD(2.5)", r".*every=2\.5 must be a whole number of local steps, 1 or more, or seconds.*"),
        ("mh.LocalSGD(-3)", r".*every=-3 must be a whole number of local steps, 1 or more, or seconds.*"),
        ("mh.DiLoCo(5, mh.Nesterov(-1, 0.9))", r"Nesterov: lr=-1 must be a number above 0; .*"),
        ("mh.DiLoCo(5, mh.Nesterov(0.7, 1.5))", r"Nesterov: momentum=1\.5 must be a number from 0 up to.*"),
        ("mh.DiLoCo(5, 'sgd')", r".*outer='sgd' is no outer optimizer; use SGD\(lr\) or Nesterov.*"),
    ],
)
def test_a_strategy_that_makes_no_sense_ends_a_script_alone_with_one_sentence(
    tmp_path: Path, strategy: str, sentence: str
) -> None:
    ended = python(script(tmp_path, strategy=strategy), MANYHANDS_NAME="0")
    assert ended.returncode == 1
    assert_one_sentence(ended.stderr, "StrategyError", sentence)


def test_a_strategy_that_makes_no_sense_ends_a_run_with_its_traceback_once(tmp_path: Path) -> None:
    path = script(tmp_path, strategy="mh.DiLoCo(every=0)")
    ended = manyhands("run", "-n", "3", "--folder", tmp_path / "run", path)
    assert ended.returncode == 1
    assert_one_sentence(ended.stderr, "StrategyError", r".*every=0 must be a whole number of local steps.*")
    assert "failed on every worker before anything was learned" in ended.stderr
    assert "restart" not in ended.stderr


def test_a_script_that_raises_on_every_worker_ends_the_run_with_its_traceback_once(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text("import manyhands as mh\npool = mh.join()\nraise ValueError('no luck')\n")
    ended = manyhands("run", "-n", "3", "--folder", tmp_path / "run", path)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback (most recent call last)") == 1
    assert "train.py failed on every worker before anything was learned" in ended.stderr


def test_a_hub_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    with closed_port() as port:
        ended = python(
            script(tmp_path),
            MANYHANDS_NAME="0",
            MANYHANDS_HUB=f"http://127.0.0.1:{port}",
            MANYHANDS_TOKEN="t",
            MANYHANDS_PATIENCE="0.05",
        )
    assert ended.returncode == 1
    assert_one_sentence(
        ended.stderr,
        "HubUnreachable",
        rf"no hub answers at ws://127\.0\.0\.1:{port}/control .*: start one .*",
    )


def test_a_wrong_token_is_refused_with_the_remedy_and_the_others_go_on(tmp_path: Path) -> None:
    with Training(tmp_path, "mh.EveryStep()", workers=2) as training:
        training.until_committed(100)
        hub = {"MANYHANDS_HUB": training.run.url, "MANYHANDS_TOKEN": "wrong"}
        ended = python(script(tmp_path), MANYHANDS_NAME="odd", **hub)
        joined = manyhands("join", "--hub", training.run.url, "--token", "wrong", script(tmp_path))
        ran = training.end()
    assert ended.returncode == 1
    assert_one_sentence(
        ended.stderr, "ConfigurationError", r"the hub does not know this token: set MANYHANDS_TOKEN to .*"
    )
    assert joined.returncode == 2
    assert re.fullmatch(
        r"manyhands: the hub at \S+ does not know this token: give --token .*\n", joined.stderr
    )
    assert_all(ran)


@contextlib.contextmanager
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """Bound, so that nobody else gets it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize("command", ["run", "hub"])
def test_a_port_in_use_is_named_with_the_remedy(tmp_path: Path, command: str) -> None:
    with busy_port() as port:
        words = [command, "--folder", tmp_path / "run", "--port", port]
        ended = manyhands(*words, *([script(tmp_path)] if command == "run" else []))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"port {port} on 127.0.0.1 is in use: end the process that listens there" in ended.stderr
    assert "choose another port with --port" in ended.stderr


@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.DiLoCo(4)"])
def test_a_contribution_that_is_not_a_number_is_left_out_and_named_and_its_samples_are_read_again(
    tmp_path: Path, strategy: str
) -> None:
    training = Training(tmp_path, strategy)
    line = '        error = xs @ params["w"] - ys\n'
    poisoned = """
        once = go.parent / "poisoned"
        if os.environ["MANYHANDS_NAME"] == "1" and shared.metrics and not once.exists():
            once.touch()
            ys = ys * np.float32("nan")
"""
    training.script.write_text(training.script.read_text().replace(line, poisoned + line))
    with training:
        training.until("the rejection", lambda: training.events("rejected"))
        ran = training.end()
    assert_all(ran)
    (event,) = ran.of_kind("rejected")
    (version,) = [version for version in ran.versions if version.rejected]
    assert event.who == "1"
    what = "gradient" if strategy == "mh.EveryStep()" else "update"
    named = f"worker 1 was left out of version {version.number}·{version.view}: NaN in the {what} of w"
    assert event.text == named
    assert list(version.rejected) == ["1"]
    assert sorted(version.contributors) == ["0", "2"]
    assert min(version.contributors.values()) > 0


MOMENTUM = """
class Momentum:
    def __init__(self): self.value = np.zeros(12, np.float32)
    def state_dict(self): return {"value": self.value.copy()}
    def load_state_dict(self, state): self.value = np.asarray(state["value"], np.float32)
momentum = Momentum()
"""


@pytest.mark.parametrize("strategy", ["mh.LocalSGD(2)", "mh.DiLoCo(4)"])
def test_a_worker_whose_own_optimizer_is_broken_takes_up_the_state_of_the_others(
    tmp_path: Path, strategy: str
) -> None:
    training = Training(tmp_path, strategy)
    text = training.script.read_text()
    for old, new in (
        ("pool = mh.join()\n", MOMENTUM + "pool = mh.join()\n"),
        ("also=[phases.Ballast()]", "also=[momentum]"),
        (
            '        params["w"] -= 0.02 * gradients["w"]\n',
            """        once = go.parent / "broken"
        if os.environ["MANYHANDS_NAME"] == "1" and shared.metrics and not once.exists():
            once.touch()
            momentum.value[3] = float("nan")
        momentum.value = 0.5 * momentum.value + gradients["w"]
        params["w"] -= 0.01 * momentum.value
""",
        ),
    ):
        assert old in text
        text = text.replace(old, new)
    training.script.write_text(text)
    with training:
        training.until("the broken one's leave", lambda: training.events("left"))
        training.until_back("1")
        ran = training.end()
    assert_all(ran)
    rejected = ran.of_kind("rejected")  # not the third, where it leaves before the others apply the version
    assert {event.who for event in rejected} == {"1"}
    assert len(rejected) in (2, 3)
    (left,) = [event for event in ran.of_kind("left") if "takes up their state" in event.text]
    assert left.who == "1"
    assert ran.outcome.restarts["1"] == 0, "its process goes on"


def test_a_sample_that_is_not_a_number_is_not_read_for_ever(tmp_path: Path) -> None:
    path = script(tmp_path, strategy="mh.EveryStep()")
    text = path.read_text().replace("params = ", 'x[111] = float("nan")\nparams = ')
    path.write_text(text.replace('np.ones_like(params["w"])', "xs.mean(0)"))
    ended = manyhands("run", "-n", "2", "--folder", tmp_path / "run", path)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback (most recent call last)") <= 2  # one for each worker's name
    sentence = (
        r"worker \w (did not count )?because of NaN in the gradient of w: .* look for what is not a number"
    )
    assert re.search(sentence, ended.stderr), ended.stderr
    assert "no worker is left: all failed" in ended.stderr
    counted = re.search(
        r"(\d+) of 400 samples \((\d+) not reached before the run ended, 0 twice\)", ended.stderr
    )
    assert counted, ended.stderr
    learned, not_reached = map(int, counted.groups())  # how many depends on who comes to the sample first
    assert 0 < learned < 400
    assert learned + not_reached == 400
