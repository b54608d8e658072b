"""What a storm cost: its faults as the injector did them, the versions as the workers wrote them down."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from msgspec.structs import replace as with_values

from manyhands.core.digests import TURNED_OVER
from manyhands.core.messages import Version
from manyhands.core.testimony import Adopted, Testimonies, account
from manyhands.engines.chaos import Injector
from manyhands.hub.journal import EventRow, VersionRow
from manyhands.hub.summary import History, summarise

GOES_ON = ("waiting", "training", "changing")

SETTLED_VERSIONS = 3
"""Figures count from the version with this number on: before it processes start."""


def verdict(
    history: History, injector: Injector, calm: History | None, testimonies: Testimonies, seconds: float
) -> dict[str, Any]:
    """What a storm of so many seconds cost, beside the undisturbed training where there is one.

    Faults, and who could work, are the injector's word; samples, digests and moments what the workers
    wrote down, or the ledger's word where they write nothing (`samples["by"]`).
    """
    history = _as_witnessed(history, testimonies)
    summary, done = summarise(history), [fault for fault in injector.done if not fault["failed"]]
    since, until = _window(history, summary["state"], injector, seconds)
    rate = goodput(history.versions, since, until)
    before = None if calm is None else _undisturbed(calm.versions)
    able = capacity(injector, until)
    samples, digests = _accounts(history, summary, injector, testimonies)
    return {
        "done": dict(Counter(str(fault["kind"]) for fault in done)),
        "not_done": dict(Counter(str(f["failed"]) for f in injector.done if f["failed"])),
        "goodput": rate,
        "undisturbed": before,
        "ratio": rate / before if before else None,
        "capacity": able,
        "of_capacity": rate / before / able if before and able else None,
        "recovery": recovery([*(float(str(fault["at"])) for fault in done), until], history.versions),
        "samples": samples,
        "digests": digests,
        "flipped": {
            "done": sum(fault["kind"] == "corrupt" for fault in done),
            "shown": digests["shown"] if digests is not None else None,
            "found": sum(map(_finds_a_flip, history.events)),
        },
        "loss": {
            "storm": summary["loss"]["last"],
            "undisturbed": summarise(calm)["loss"]["last"] if calm is not None else None,
        },
        "counts": _counts(history, injector, testimonies),
        "sound": samples["lost"] in (0, None)
        and not samples["twice"]
        and (digests is None or digests["equal"])
        and summary["state"] in ("finished", *GOES_ON),
    }


def _finds_a_flip(event: EventRow) -> bool:
    """Somebody goes for it: by the digests, or by its own word."""
    by_digest = event.kind == "evicted" and "digest" in event.text
    return by_digest or (event.kind == "left" and TURNED_OVER in event.text)


def _as_witnessed(history: History, testimonies: Testimonies) -> History:
    """Each version at the moment when the first worker held it: the hub may have heard of it later."""
    first: dict[Version, float] = {}
    for adopted in _adopted(testimonies):
        first[adopted.version] = min(adopted.at, first.get(adopted.version, adopted.at))
    rows = [with_values(row, at=first.get(_name(row), row.at)) for row in history.versions]
    return replace(history, versions=sorted(rows, key=lambda row: row.at))


def _adopted(testimonies: Testimonies) -> Iterable[Adopted]:
    return (told for each in testimonies.values() for told in each if isinstance(told, Adopted))


def _name(row: VersionRow) -> Version:
    return Version(row.number, row.view)


def _window(history: History, state: str, injector: Injector, seconds: float) -> tuple[float, float]:
    """From when to when the storm lasted: to its end, or that of the training."""
    since, last = (injector.alive[0][0], injector.alive[-1][0]) if injector.alive else (0.0, 0.0)
    if state == "finished" and history.versions:
        last = history.versions[-1].at
    return since, min(since + seconds, last)


def goodput(versions: Sequence[VersionRow], since: float, until: float) -> float:
    """Committed samples a second between two moments."""
    samples = sum(version.samples for version in versions if since < version.at <= until)
    return samples / (until - since) if until > since else 0.0


def _undisturbed(versions: Sequence[VersionRow]) -> float:
    """Committed samples a second from when all processes had started."""
    if len(versions) < SETTLED_VERSIONS:
        return 0.0
    return goodput(versions, versions[SETTLED_VERSIONS - 1].at, versions[-1].at)


def capacity(injector: Injector, until: float) -> float:
    """Which part of the processes could work, in the mean over the storm."""
    during = [(processes, able) for at, processes, able in injector.alive if at <= until]
    most = max((processes for processes, _ in during), default=0)
    return statistics.fmean(able for _, able in during) / most if most else 1.0


def recovery(moments: Sequence[float], versions: Sequence[VersionRow]) -> dict[str, float] | None:
    """Of each fault the longest wait for a version until the next one, or the end: the median, and the worst.

    `moments`: when the faults were done, and the end.
    """
    made, waits = [version.at for version in versions], []
    if not made or made[0] > moments[0]:
        made.insert(0, moments[0])
    if moments[-1] > made[-1]:
        made.append(moments[-1])  # that wait is not over: it is this long at least
    for at, following in pairwise(moments):
        gaps = [
            later - max(earlier, at)
            for earlier, later in pairwise(made)
            if later > at and earlier < following
        ]
        waits += [max(gaps)] if gaps else []
    return {"median": statistics.median(waits), "worst": max(waits)} if waits else None


def _accounts(
    history: History, summary: dict[str, Any], injector: Injector, testimonies: Testimonies
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Samples and digests. What a stop condition or the quarantine left out is `unreached`, and not lost."""
    ledger = summary["samples"]
    unreached = (ledger["missing"] or 0) + (ledger["quarantined"] or 0)
    if not testimonies:
        kept = {key: ledger[key] for key in ("committed", "total", "twice")}
        return {**kept, "lost": None, "unreached": unreached, "by": "the ledger"}, None
    flips = [float(str(f["at"])) for f in injector.done if f["kind"] == "corrupt" and not f["failed"]]
    found = account(testimonies, map(_name, history.versions), flips)
    samples = {
        "committed": found.committed,
        "total": found.total,
        "lost": found.lost - unreached if found.total else None,
        "twice": found.twice,
        "unreached": unreached,
        "by": "the workers",
    }
    of_digests = ("versions", "unwitnessed", "apart", "shown", "longest", "results")
    return samples, {"equal": found.equal, **{key: asdict(found)[key] for key in of_digests}}


def _counts(history: History, injector: Injector, testimonies: Testimonies) -> dict[str, Any]:
    """Over time (Unix seconds): processes, and how many can work; contributions, and how many weigh."""
    stands = {_name(row) for row in history.versions}
    made = {each.version: each for each in _adopted(testimonies) if each.version in stands}
    moments = [(row.at, made[_name(row)]) for row in history.versions if _name(row) in made]
    return {
        "processes": [[at, processes, able] for at, processes, able in injector.alive],
        "versions": [[at, each.contributed, each.combined] for at, each in moments]
        or [[row.at, row.size, sum(n > 0 for n in row.contributors.values())] for row in history.versions],
    }
