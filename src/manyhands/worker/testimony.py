"""What a worker says of itself to whoever disturbs it on purpose: nothing, but in a storm."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from manyhands.core.messages import Contribution, Version
from manyhands.core.testimony import Adopted, Testimony
from manyhands.worker.driving import Driver

VARIABLE = "MANYHANDS_CHAOS"
"""The folder in which each worker says so, in files named by its process; nobody does without it."""


def came() -> None:
    """The script has come to `join()`: from now on this process could work. An empty file says so."""
    if folder := os.environ.get(VARIABLE):
        Path(folder, str(os.getpid())).touch()


def expose(driver: Driver) -> None:
    """Write address and length of the largest array of the committed state that the digest covers."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return
    arrays = [array for array in driver.committed() if array.flags.c_contiguous]
    said = {}
    if arrays:
        largest = max(arrays, key=lambda array: array.nbytes)
        said = {"address": largest.__array_interface__["data"][0], "bytes": largest.nbytes}
    new = Path(folder, f".{os.getpid()}-{threading.get_ident()}")
    new.write_text(json.dumps(said))
    new.replace(Path(folder, f"{os.getpid()}.json"))


def say(testimony: Testimony) -> None:
    """Write it down, a line of JSON behind those before."""
    if folder := os.environ.get(VARIABLE):
        with Path(folder, f"{os.getpid()}.held").open("ab", buffering=0) as file:
            file.write(msgspec.json.encode(testimony) + b"\n")


def adopted(version: Version, digest: str, contributions: Iterable[Contribution]) -> None:
    """This worker holds a version, made of these contributions."""
    if VARIABLE in os.environ:
        made_of = tuple(contributions)
        spans = tuple(span for contribution in made_of for span in contribution.spans)
        combined = sum(contribution.weight > 0 for contribution in made_of)
        say(Adopted(time.time(), version, digest, spans, len(made_of), combined))
