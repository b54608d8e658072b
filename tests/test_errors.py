"""How an error is shown that nobody catches."""

import subprocess
import sys
from pathlib import Path

import pytest

STRATEGY = "import manyhands\nmanyhands.DiLoCo(every=0)\n"
OURS = "import manyhands.worker.alone as alone\nalone.Alone().heal()\n"
THEIRS = "import manyhands.errors, json\njson.loads('{')\n"


@pytest.mark.parametrize(
    ("source", "files", "sentence"),
    [
        (STRATEGY, ["script.py"], "manyhands.errors.StrategyError: Strategy: every=0 must be"),
        (
            OURS,
            ["script.py", "alone.py"],
            "manyhands.errors.ProtocolError: a driver called heal()",
        ),
        (THEIRS, ["script.py", "__init__.py", "decoder.py", "decoder.py"], "json.decoder.JSONDecodeError: "),
    ],
)
def test_an_error_of_the_script_is_shown_without_our_lines_and_every_other_with_all(
    tmp_path: Path, source: str, files: list[str], sentence: str
) -> None:
    (tmp_path / "script.py").write_text(source)
    command = [sys.executable, str(tmp_path / "script.py")]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60.0).stderr.splitlines()
    assert [Path(line.split('"')[1]).name for line in shown if line.startswith("  File ")] == files
    assert shown[-1].startswith(sentence)
