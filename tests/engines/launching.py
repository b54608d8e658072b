"""A run with a stand-in for the hub, and what it says."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from manyhands.engines.local import LocalRun

STAND_IN_HUB = (sys.executable, str(Path(__file__).with_name("stand_in_hub.py")))


@dataclass
class Heard:
    """A run of a script, with a stand-in for the hub, and what it said."""

    run: LocalRun
    lines: list[tuple[str, str, str]] = field(default_factory=list)
    news: list[str] = field(default_factory=list)

    def text(self, stream: str) -> list[str]:
        return [text for _, name, text in self.lines if name == stream]
