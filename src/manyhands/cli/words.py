"""Figures as people read them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from manyhands.hub.figures import number as number


def size(count: float) -> str:
    """Bytes: ``999 B``, ``12.3 MB`` (decimal)."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 999.5 or unit == "TB":
            break
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"


def duration(seconds: float | None) -> str:
    """``0.42 s``, ``12.3 s``, ``2:05``, ``1:02:05``; a dash where it is not known."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: int, thing: str) -> str:
    """``1 fault``, ``2 faults``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def balance(samples: Mapping[str, float | None]) -> str:
    """``0 missing, 0 twice``. An epoch ends when all of it is committed: what lacks was not reached."""
    missing, twice = samples["missing"], number(samples["twice"])
    lacking = (
        f"{number(missing)} not reached before the run ended" if missing else f"{number(missing)} missing"
    )
    left_out = f"{number(samples['quarantined'])} quarantined, " if samples.get("quarantined") else ""
    return f"{left_out}{lacking}, {twice} twice"


def clock(at: float) -> str:
    """The local time of a moment in Unix seconds."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def headline_metric(metrics: Mapping[str, float | None]) -> tuple[str, float | None]:
    """The loss; the first metric where none is called so; ``("loss", None)`` before there is any."""
    if "loss" in metrics or not metrics:
        return "loss", metrics.get("loss")
    name = next(iter(metrics))
    return name, metrics[name]
