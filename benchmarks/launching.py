"""Workers of a benchmark: scripts in `scripts/`, run as users run theirs, that print what they measured."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import understood
from benchmarks.rows import CannotRun
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(__file__).with_name("scripts")


def need_linux() -> None:
    """Raises CannotRun elsewhere."""
    if sys.platform != "linux":
        raise CannotRun(f"it needs Linux, whose processes it starts and watches; this is {sys.platform}")


def need_torch() -> None:
    """Raises CannotRun without PyTorch and its gloo."""
    if importlib.util.find_spec("torch") is None:
        raise CannotRun("it needs PyTorch, which is not installed here: pip install manyhands[torch]")
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        raise CannotRun("it needs gloo as the peer, which this build of PyTorch lacks: install another build")


def environment(**settings: object) -> dict[str, str]:
    """For a script: where to import this package from, loopback for gloo, and its settings."""
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", **{k: str(v) for k, v in settings.items()}}


def run_workers(script: str, workers: int, settings: Mapping[str, object], seconds: float) -> list[Any]:
    """Runs a script under the local engine to its end; returns the figures of all workers as they came.

    Raises CannotRun, with the last lines printed, for a run that failed or was not over in `seconds`.
    """
    figures: list[Any] = []
    said: deque[str] = deque(maxlen=15)

    def line(worker: str, _: str, text: str) -> None:
        found = understood(text)
        if found is None:
            said.append(f"[{worker}] {text}")
        else:
            figures.append(found)

    with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as folder:
        options = LocalOptions(
            script=SCRIPTS / script,
            workers=workers,
            runs=Path(folder),
            env=environment(BENCH_FOLDER=folder, BENCH_WORKERS=workers, **settings),
            max_restarts=0,
        )
        with LocalRun(options, lines=line) as run:
            try:
                outcome = run.wait(seconds)
            except TimeoutError:
                raise CannotRun(
                    f"{script} was not over after {seconds:.0f} s; it said {list(said)}"
                ) from None
    if outcome.code != 0 or not figures:
        raise CannotRun(f"{script} failed ({outcome.why}); it said {list(said)}")
    return figures
