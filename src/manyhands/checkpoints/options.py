"""What is said of checkpoints on a command line."""

from __future__ import annotations

import re

from manyhands.checkpoints.manifest import Manifest
from manyhands.core.checkpoints import Plan
from manyhands.core.messages import Kept
from manyhands.errors import CheckpointError, ConfigurationError

EVERY, KEEP = "10min", 3

_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
_EVERY = re.compile(r"(\d+(?:\.\d+)?) *(s|sec|min|h|versions?)")


def plan_of(url: str, every: str, keep: int) -> Plan:
    """Raises ConfigurationError for what makes no sense; opens the store, and writes nothing."""
    found = _EVERY.fullmatch(every.strip())
    number = float(found[1]) if found is not None else 0.0
    if found is None or number <= 0 or (found[2] not in _UNITS and number != int(number)):
        raise ConfigurationError(
            f"--checkpoint-every {every} makes no sense: give 30s, 10min, 1h or 100versions"
        )
    if keep < 1:
        raise ConfigurationError(f"--checkpoint-keep {keep} makes no sense: give 1 or more")
    from manyhands.checkpoints.store import Store  # it takes a while to import, and most runs keep nothing

    url = Store(url).url
    if found[2] in _UNITS:
        return Plan(url, seconds=number * _UNITS[found[2]], keep=keep)
    return Plan(url, versions=int(number), keep=keep)


def to_resume(url: str, *, verified: bool = True) -> tuple[Kept, Manifest]:
    """The checkpoint at a URL, or the newest undamaged one under it.

    Raises ConfigurationError where there is none, CheckpointError for a damaged one that was named. Unless it
    is to be `verified`, manifests alone are read: who takes the state from there finds what is damaged.
    """
    from manyhands.checkpoints.store import found_at

    store, name = found_at(url)
    damaged = list[str]()
    if name is not None and verified:
        store.verified(name)
    elif name is None:
        found = [store.newest(damaged.append)] if verified else store.written(damaged.append)
        name = next(iter(found), None)
    if name is None:
        if damaged:
            raise CheckpointError(f"no checkpoint under {url} is whole: {damaged[0]}")
        raise ConfigurationError(
            f"there is no checkpoint under {url}: give the URL that --checkpoint was given, or one of those "
            "that `manyhands checkpoint ls` lists"
        )
    manifest = store.manifest(name)
    return Kept(f"{store.url}/{name}", manifest.version, manifest.holdings), manifest
