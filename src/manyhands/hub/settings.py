"""What a hub is told about the run that it serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from manyhands.core.checkpoints import Plan


@dataclass(frozen=True)
class Settings:
    """What the command line and the environment say. Times in seconds; port 0: a free one.

    `resume`: the URL of a checkpoint, or of those of a run, to begin with; "" for none.
    `take_over`: the folder of the run is lost; begin with what its workers report.
    """

    folder: Path
    run: str
    token: str
    host: str = "127.0.0.1"
    port: int = 0
    expected: int = 1
    lease: float = 10.0
    until_finished: bool = False
    journal_deadline: float = 60.0
    checkpoints: Plan | None = None
    resume: str = ""
    take_over: bool = False
