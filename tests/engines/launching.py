"""What the tests of launchers share: marked processes, a run and what it says."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from manyhands.engines.local import LocalRun

STAND_IN_HUB = (sys.executable, str(Path(__file__).with_name("stand_in_hub.py")))


def marked(mark: str) -> list[psutil.Process]:
    """The processes that live and carry this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits for something that another process does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.01)


@dataclass
class Heard:
    """A run of a script, with a stand-in for the hub, and what it said."""

    run: LocalRun
    lines: list[tuple[str, str, str]] = field(default_factory=list)
    news: list[str] = field(default_factory=list)

    def text(self, stream: str) -> list[str]:
        return [text for _, name, text in self.lines if name == stream]
