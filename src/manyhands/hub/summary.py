"""The figures of a run, read from its journal: what `summary.json` says."""

from __future__ import annotations

import contextlib
import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from manyhands.core.coordinator import Coordinator
from manyhands.core.ledger import Ledger
from manyhands.errors import MachineError
from manyhands.hub.journal import FAULTS, EventRow, Journal, SampleRow, VersionRow

_UNFINISHED = ("waiting", "training", "changing")
_GONE = ("lost", "evicted")


@dataclass(frozen=True)
class History:
    """A run's journal as it was at one moment; `served`: a hub is at work on it, or was killed."""

    run: str
    started: float | None
    ended: float | None
    served: bool
    snapshot: bytes | None
    versions: Sequence[VersionRow]
    events: Sequence[EventRow]
    moments: Sequence[SampleRow]


def read_history(folder: Path) -> History:
    """Reads the journal in a run's folder. Raises `JournalError` where there is no run."""
    with Journal(folder / "hub.db", readonly=True) as journal:
        return History(
            run=(journal.state("run") or folder.resolve().name.encode()).decode(),
            started=_moment(journal.state("started")),
            ended=_moment(journal.state("ended")),
            served=journal.state("running") == b"yes",
            snapshot=journal.state("coordinator"),
            versions=journal.versions(),
            events=journal.events(),
            moments=journal.samples(),
        )


def summarise(history: History) -> dict[str, Any]:
    """The summary of a run.

    Times are Unix seconds (`at`, `started`, `ended`) or seconds; what is not known is None. `recovery`
    has an entry for each fault: seconds until the next version was committed, and until a version held
    something of the worker of that name again.
    """
    versions, events, moments = history.versions, history.events, history.moments
    known = [version.at for version in versions] + [event.at for event in events] + [m.at for m in moments]
    began = history.started if history.started is not None else min(known, default=None)
    until = history.ended if history.ended is not None else max(known, default=None)
    faults = sorted((event for event in events if event.kind in FAULTS), key=lambda event: event.at)
    lasted = sum(version.seconds for version in versions)
    committed = sum(version.samples for version in versions)
    return {
        "run": history.run,
        **_standing(history, committed),
        "started": began,
        "ended": until,
        "seconds": until - began if began is not None and until is not None else 0.0,
        "version": versions[-1].number if versions else 0,
        "versions": len(versions),
        "samples_per_second": committed / lasted if lasted else 0.0,
        "seconds_per_version": lasted / len(versions) if versions else 0.0,
        "loss": _loss(versions),
        "bytes": {
            "sent": max((moment.sent for moment in moments), default=0),
            "received": max((moment.received for moment in moments), default=0),
        },
        "workers": _workers(versions, events),
        "faults": [{"at": e.at, "kind": e.kind, "who": e.who, "text": e.text} for e in faults],
        "recovery": _recovery(faults, versions),
    }


def write_summary(folder: Path) -> dict[str, Any]:
    """Writes `summary.json` into the run's folder, whole or not at all, and returns what is in it."""
    summary = summarise(read_history(folder))
    write_whole(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def write_whole(path: Path, text: str) -> None:
    """Replaces a file at once: who reads it sees the old text or the new one. Raises `MachineError`."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise MachineError(
            f"{path} cannot be written ({error.strerror}): free some space, or make the folder writable"
        ) from None


def headline(versions: Sequence[VersionRow]) -> str:
    """The metric that stands for the run: the loss, or the first one where none is called so."""
    for version in reversed(versions):
        if version.metrics:
            return "loss" if "loss" in version.metrics else next(iter(version.metrics))
    return "loss"


def _standing(history: History, committed: float) -> dict[str, Any]:
    """State, reason, strategy and samples, as the coordinator saw them last."""
    samples: dict[str, Any] = {
        "committed": committed,
        "quarantined": None,
        "total": None,
        "missing": None,
        "twice": None,
        "read": 0,
    }
    if history.snapshot is None:
        return {"state": "waiting", "why": "", "strategy": "", "samples": samples, "quarantine": []}
    coordinator = Coordinator.restore(history.snapshot)
    interrupted = coordinator.state in _UNFINISHED and not history.served
    state = "stopped" if interrupted else coordinator.state
    samples["read"] = coordinator.membership.totals.read
    progress = [coordinator.ledger.progress(index) for index in sorted(coordinator.ledger.datasets)]
    if progress:  # a script that does not partition has no total
        total = sum(each.length * each.epochs for each in progress)
        settled, skipped = sum(p.total_committed for p in progress), sum(p.skipped for p in progress)
        samples |= {
            "committed": settled - skipped,
            "quarantined": skipped,
            "total": total,
            "missing": total - settled,
            "twice": sum(each.twice for each in progress),
        }
    return {
        "state": state,
        "why": coordinator.why,
        "strategy": coordinator.strategy,
        "samples": samples,
        "quarantine": quarantined(coordinator.ledger),
    }


def quarantined(ledger: Ledger) -> list[dict[str, Any]]:
    """What nobody learns from any more: in words, by the data set's own indices, and why."""
    return [{"what": str(found), **msgspec.structs.asdict(found)} for found in ledger.quarantine]


def _moment(value: bytes | None) -> float | None:
    return float(value) if value else None


def _loss(versions: Sequence[VersionRow]) -> dict[str, Any]:
    name = headline(versions)
    values = [value for version in versions if (value := version.metrics.get(name)) is not None]
    found = {"first": values[0], "last": values[-1]} if values else {}
    if values and name == "loss":  # of another metric nobody knows whether less is better
        found["best"] = min(values)
    return {"name": name, "first": None, "last": None, "best": None, **found}


def _workers(versions: Sequence[VersionRow], events: Sequence[EventRow]) -> dict[str, dict[str, Any]]:
    """By name: samples in committed versions, versions contributed to, times joined and lost."""
    found: dict[str, dict[str, Any]] = {}

    def of(name: str) -> dict[str, Any]:
        return found.setdefault(name, {"samples": 0.0, "contributions": 0, "joined": 0, "lost": 0})

    for version in versions:
        for name, samples in version.contributors.items():
            of(name)["samples"] += samples
            of(name)["contributions"] += samples > 0
    for event in events:
        if event.who and event.kind == "joined":
            of(event.who)["joined"] += 1
        elif event.who and event.kind in _GONE:
            of(event.who)["lost"] += 1
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def _recovery(faults: Sequence[EventRow], versions: Sequence[VersionRow]) -> list[dict[str, Any]]:
    """For each fault, seconds until the pool went on and until the lost worker did.

    A version made before a loss may be reported after it: it holds the lost worker, in the view before.
    """
    moments = [version.at for version in versions]
    places: dict[str, list[int]] = {}
    for place, version in enumerate(versions):
        for name, samples in version.contributors.items():
            if samples > 0:
                places.setdefault(name, []).append(place)
    found: list[dict[str, Any]] = []
    for fault in faults:
        following = bisect_right(moments, fault.at)
        next_commit = back = None
        if fault.kind in _GONE:
            view = versions[following - 1].view if following else 0
            while following < len(versions) and (
                versions[following].view == view and fault.who in versions[following].contributors
            ):
                following += 1
            own = places.get(fault.who, [])
            returned = bisect_left(own, following)
            back = moments[own[returned]] - fault.at if returned < len(own) else None
        if following < len(versions):
            next_commit = moments[following] - fault.at
        found.append(
            {"at": fault.at, "kind": fault.kind, "who": fault.who, "next_commit": next_commit, "back": back}
        )
    return found
