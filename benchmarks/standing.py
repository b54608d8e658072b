"""How far the workers of a peer have come, in files that outlive kill -9; for scripts, and who reads them."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

RECORD = struct.Struct("dd")


def came(name: str) -> Callable[[float], None]:
    """This process could work from now on; what is returned writes down how many batches are committed."""
    folder = Path(os.environ["BENCH_FOLDER"])
    (folder / f"came-{name}-{os.getpid()}").touch()
    file = (folder / f"committed-{name}").open("ab", buffering=0)

    def committed(batches: float) -> None:
        file.write(RECORD.pack(time.time(), batches))

    return committed


def arrivals(folder: Path) -> list[tuple[float, str, int]]:
    """Of each process that has come when (Unix seconds), its name and its id, in order."""
    return sorted(
        (path.stat().st_mtime, name, int(pid))
        for path in folder.glob("came-*")
        for _, name, pid in [path.name.split("-")]
    )


def committed_at(folder: Path, at: float) -> float:
    """How many batches were committed at a moment, by the word of who had come farthest."""
    last = [0.0]
    for path in folder.glob("committed-*"):
        data = path.read_bytes()
        before = [n for when, n in RECORD.iter_unpack(data[: len(data) // 16 * 16]) if when <= at]
        last += before[-1:]
    return max(last)


def share_of_capacity(
    kills: Mapping[float, str], came: list[tuple[float, str, int]], workers: int, since: float, until: float
) -> float:
    """Which part of the workers could work, had each kill taken one away until one comes after it.

    Of a name that is in nobody's place, as "" is, the first of any name is awaited.
    """
    away = 0.0
    for at, name in kills.items():
        back = next((when for when, who, _ in came if when > at and name in ("", who)), until)
        away += min(back, until) - at
    return 1 - away / workers / (until - since)
