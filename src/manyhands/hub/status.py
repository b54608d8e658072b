"""What the hub tells those who look on: plain values for REST and Prometheus."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from manyhands._version import __version__
from manyhands.core.messages import Tensor
from manyhands.hub.server import Hub
from manyhands.hub.summary import quarantined

PACE_SECONDS = 20.0
PACE_VERSIONS = 500


def run_status(hub: Hub) -> dict[str, Any]:
    """The run at a glance: state, view, version, samples, workers, bytes, faults, time left."""
    coordinator = hub.coordinator
    view, version = coordinator.view, coordinator.version
    started = float(hub.journal.state("started") or time.time())
    ended = float(hub.journal.state("ended") or time.time())
    newest = hub.journal.versions(last=1)
    progress = [coordinator.ledger.progress(index) for index in sorted(coordinator.ledger.datasets)]
    settled, skipped = sum(p.total_committed for p in progress), sum(p.skipped for p in progress)
    total = sum(p.length * p.epochs for p in progress)
    pace = samples_per_second(hub)
    last = coordinator.checkpoints.last
    totals = coordinator.membership.totals
    return {
        "run": coordinator.run,
        "state": coordinator.state,
        "why": coordinator.why,
        "software": __version__,
        "started": started,
        "elapsed": ended - started,
        "expected": coordinator.expected,
        "view": {"number": view.number, "size": view.size} if view else {"number": 0, "size": 0},
        "version": {"number": version.number, "view": version.view},
        "strategy": coordinator.strategy,
        "exchange": exchange_status(hub),
        "tensors": tensors_status(coordinator.tensors),
        "metrics": newest[0].metrics if newest else {},
        "samples": {
            "committed": settled - skipped,
            "quarantined": skipped,
            "total": total,
            "per_second": pace,
            "read": totals.read,
            "missing": total - settled,
            "twice": sum(p.twice for p in progress),
        },
        "workers": {"live": hub.live(), "contributing": hub.contributing},
        "bytes": {"sent": totals.sent, "received": totals.received},
        "faults": hub.journal.faults(),
        "checkpoint": {"url": last.url, "version": last.version.number} if last is not None else None,
        "time_left": (total - settled) / pace if pace and coordinator.state != "failed" else None,
        "quarantine": quarantined(coordinator.ledger),
        "datasets": [
            {
                "index": p.dataset,
                "length": p.length,
                "epochs": p.epochs,
                "epoch": p.epoch,
                "committed": p.committed,
                "leased": p.leased,
                "free": p.free,
                "order": coordinator.ledger.datasets[p.dataset].order,
            }
            for p in progress
        ],
    }


def samples_per_second(hub: Hub) -> float:
    """Over the newest versions of about `PACE_SECONDS`."""
    seconds = samples = 0.0
    for lasted, counted in hub.journal.paces(last=PACE_VERSIONS):
        seconds += lasted
        samples += counted
        if seconds >= PACE_SECONDS:
            break
    return samples / seconds if seconds else 0.0


def exchange_status(hub: Hub) -> str:
    """How slices travel between the members; "" while that is not known, or there is just one."""
    members = hub.coordinator.membership.survivors()
    neighbours = [worker.beat.neighbours for worker in members]
    if len(members) < 2 or None in neighbours or not _agree(neighbours):
        return ""
    most = max(worker.beat.streams for worker in members)
    sockets = "sockets" + (f", up to {most} to each member" if most > 1 else "")
    if not any(neighbours):
        return sockets
    if all(number == len(members) - 1 for number in neighbours):
        encoded = "encode=" in hub.coordinator.strategy
        return "shared memory" + (", where nothing is encoded" if encoded else "")
    return f"shared memory within hosts, {sockets} between them"


def _agree(neighbours: list[int | None]) -> bool:
    """Whether these can be groups of hosts; not while connections are made, of which one side tells first."""
    return all(number is None or times % (number + 1) == 0 for number, times in Counter(neighbours).items())


def tensors_status(tensors: tuple[Tensor, ...]) -> dict[str, int]:
    """How much is shared: tensors, elements, bytes in the script's own dtypes."""
    elements = bytes_ = 0
    for tensor in tensors:
        count = 1
        for extent in tensor.shape:
            count *= extent
        bits = re.search(r"\d+", tensor.dtype)
        elements += count
        bytes_ += count * (int(bits[0]) // 8 if bits else 1)
    return {"count": len(tensors), "elements": elements, "bytes": bytes_}


def workers_status(hub: Hub) -> list[dict[str, Any]]:
    """The incarnations that live, and the last that did, with their counters."""
    committed = hub.journal.committed()
    view = hub.coordinator.view
    return [
        {
            "incarnation": worker.incarnation,
            "name": worker.name,
            "state": worker.state,
            "rank": view.rank(worker.incarnation) if view else None,
            "pid": worker.pid,
            "host": worker.host,
            "port": worker.port,
            "joined": worker.joined,
            "last_heard": worker.last_heard,
            "sent": worker.beat.sent,
            "received": worker.beat.received,
            "read": worker.read,
            "committed": committed.get(worker.incarnation, 0.0),
            "why": worker.why,
        }
        for worker in hub.coordinator.workers.values()
    ]


def rounds_status(hub: Hub, last: int) -> list[dict[str, Any]]:
    """The newest versions, the newest last."""
    return [
        {
            "version": row.number,
            "view": row.view,
            "at": row.at,
            "seconds": row.seconds,
            "metrics": row.metrics,
            "samples": row.samples,
            "digest": row.digest,
            "contributors": row.contributors,
            "rejected": row.rejected,
        }
        for row in hub.journal.versions(last=last)
    ]


def ledger_status(hub: Hub) -> dict[str, Any]:
    """Each data set's progress, and who holds which positions of its current epoch."""
    ledger, workers = hub.coordinator.ledger, hub.coordinator.workers
    return {
        "datasets": [
            {
                **asdict(ledger.progress(index)),
                "leases": [
                    {
                        "name": workers[who].name if who in workers else who,
                        "spans": pairs,
                        "samples": sum(stop - start for start, stop in pairs),
                    }
                    for who, pairs in ledger.leases(index).items()
                ],
            }
            for index in sorted(ledger.datasets)
        ]
    }
