"""Other libraries to measure beside, each in an environment of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.rows import CannotRun, say

VERSIONS = Path(__file__).with_name("environments")
"""For each library a file of all that is installed with it, version by version."""

INSTALL_SECONDS = 1200.0


def interpreter(name: str) -> Path:
    """The Python of a library's environment, in the user's cache folder; making it takes minutes, once.

    Raises CannotRun, with the installer's reason, where it cannot be installed.
    """
    versions = VERSIONS / f"{name}.txt"
    made_of = hashlib.sha256(sys.version.encode() + versions.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "manyhands" / "peers" / f"{name}-{made_of}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        say(f"{name}: installing {versions.name} into {folder}")
        _install(sys.executable, "-m", "venv", "--clear", str(folder))
        _install(str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", str(versions))
        ready.touch()
    return python


def _install(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"it was not installed after {INSTALL_SECONDS:.0f} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in said if line.startswith("ERROR:")] or said
        raise CannotRun(f"it cannot be installed: {errors[-1] if errors else 'without a word'}")
