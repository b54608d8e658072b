"""What a local run is asked to do, and how it ended."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from manyhands.checkpoints.options import EVERY, KEEP, plan_of, to_resume
from manyhands.errors import ConfigurationError, UserError


@dataclass(frozen=True)
class LocalOptions:
    """Workers on this host that run one script, with a hub of their own or one elsewhere.

    `folder` is the run's folder; without one it is ``<runs>/<new id>``. A run there that has not ended goes
    on, with these options. `env` is added to the environment of workers and hub. `hub` and `token` name a
    hub elsewhere with its `run`, which is then neither started nor watched, and there is no folder. `names`
    are the workers' names, ``"0".."n-1"`` without. `port` is where the run's own hub listens; 0: anywhere.
    Times are seconds: `lease` is how long the hub waits for a silent worker, `grace` how long a worker may
    take to leave after SIGTERM, `hub_deadline` how long the hub may take to start. `patience` stretches
    every time limit derived from measurements. `checkpoint` is the URL under which the committed state is
    kept, `checkpoint_every` how often ("10min", "100versions"), `checkpoint_keep` how many stay; `resume` the
    URL of the checkpoint, or of those of a run, with which a new run begins.
    """

    script: str | Path
    args: tuple[str, ...] = ()
    workers: int = 1
    folder: Path | None = None
    runs: Path = Path("runs")
    env: Mapping[str, str] = field(default_factory=dict)
    max_restarts: int = 5
    lease: float = 10.0
    patience: float = 1.0
    names: tuple[str, ...] = ()
    hub: str | None = None
    run: str = ""
    port: int = 0
    token: str | None = None
    hub_command: tuple[str, ...] = (sys.executable, "-P", "-m", "manyhands.hub")
    hub_restarts: int = 20
    hub_deadline: float = 20.0
    grace: float = 10.0
    checkpoint: str = ""
    checkpoint_every: str = EVERY
    checkpoint_keep: int = KEEP
    resume: str = ""

    def check(self) -> None:
        """Raises `UserError` or `ConfigurationError`, in one sentence, for what cannot work."""
        if not Path(self.script).is_file():
            what = "is a folder" if Path(self.script).is_dir() else "does not exist"
            raise UserError(f"the script {self.script} {what}: give the path of a Python file")
        if self.workers < 1:
            raise ConfigurationError(f"{self.workers} workers cannot run anything: give -n 1 or more")
        if self.max_restarts < 0:
            raise ConfigurationError(f"--max-restarts {self.max_restarts} makes no sense: give 0 or more")
        if not 0 <= self.port < 65536:
            raise ConfigurationError(
                f"--port {self.port} makes no sense: give 1 to 65535, or 0 for a free one"
            )
        for option, value in (("--lease", self.lease), ("--patience", self.patience)):
            if not 0 < value < float("inf"):
                raise ConfigurationError(f"{option} {value} makes no sense: give a number above 0")
        if self.checkpoint:
            plan_of(self.checkpoint, self.checkpoint_every, self.checkpoint_keep)
        if self.resume:
            to_resume(self.resume)
        if self.names and len(set(self.names)) != self.workers:
            raise ConfigurationError(f"{self.workers} workers need as many different names, not {self.names}")
        if self.hub is not None and self.token is None:
            raise ConfigurationError(
                f"the hub at {self.hub} wants a token: give --token or set MANYHANDS_TOKEN"
            )

    def worker_names(self) -> tuple[str, ...]:
        return self.names or tuple(str(place) for place in range(self.workers))


@dataclass(frozen=True)
class Outcome:
    """How a run ended: exit code (0 finished, 1 failed, 128+n stopped by signal n) and the reason in words.

    `restarts` counts by worker name, `hub_restarts` those of the hub; `seconds` is wall time.
    """

    code: int
    why: str
    folder: Path | None
    restarts: Mapping[str, int]
    hub_restarts: int
    seconds: float
