"""Workers that do several things in turn, all of them the same at a time, so that a slow moment hits each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch.distributed as dist

Arms = Mapping[str, tuple[Callable[[], object], int]]
"""What to call, and how often in one turn."""


def take_turns(arms: Arms, repetition: int) -> dict[str, float]:
    """Seconds that one call of each arm takes; each repetition begins with another arm."""
    names, first = list(arms), repetition % len(arms)
    return {name: seconds_each(*arms[name]) for name in names[first:] + names[:first]}


def seconds_each(call: Callable[[], object], times: int) -> float:
    """Seconds that one of so many calls takes, until the slowest worker is through."""
    dist.barrier()
    began = time.perf_counter()
    for _ in range(times):
        call()
    dist.barrier()
    return (time.perf_counter() - began) / times
