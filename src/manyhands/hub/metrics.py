"""The run as Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manyhands.hub.server import Hub
from manyhands.hub.status import run_status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("joining", "ready", "healing", "member", "lost", "left")

Value = tuple[dict[str, str], float]


def prometheus(hub: Hub) -> str:
    """Gauges and counters of the run; a labelled one has a line for every label."""
    return "\n".join(_lines(hub)) + "\n"


def _lines(hub: Hub) -> Iterator[str]:
    run = run_status(hub)
    states: list[str] = [worker.state for worker in hub.coordinator.workers.values()]
    yield from _metric("info", "gauge", "the run", [({"run": run["run"], "software": run["software"]}, 1)])
    yield from _metric("up", "gauge", "1 while the journal can be written", [({}, 0 if hub.trouble else 1)])
    yield from _metric("version", "gauge", "number of the newest version", [({}, run["version"]["number"])])
    yield from _metric("view", "gauge", "number of the view", [({}, run["view"]["number"])])
    yield from _metric("members", "gauge", "members of the view", [({}, run["view"]["size"])])
    yield from _metric(
        "contributing", "gauge", "members in the newest version", [({}, run["workers"]["contributing"])]
    )
    yield from _metric(
        "workers", "gauge", "incarnations by state", [({"state": s}, states.count(s)) for s in STATES]
    )
    yield from _metric(
        "samples_committed_total", "counter", "samples in versions", [({}, run["samples"]["committed"])]
    )
    yield from _metric(
        "samples_quarantined_total", "counter", "samples left out", [({}, run["samples"]["quarantined"])]
    )
    yield from _metric("samples_read_total", "counter", "samples read", [({}, run["samples"]["read"])])
    yield from _metric("samples", "gauge", "samples of the whole run", [({}, run["samples"]["total"])])
    yield from _metric("samples_per_second", "gauge", "pace", [({}, run["samples"]["per_second"])])
    yield from _metric("sent_bytes_total", "counter", "bytes workers sent", [({}, run["bytes"]["sent"])])
    yield from _metric(
        "received_bytes_total", "counter", "bytes workers got", [({}, run["bytes"]["received"])]
    )
    yield from _metric(
        "events_total",
        "counter",
        "events by kind",
        [({"kind": k}, n) for k, n in hub.journal.kinds().items()],
    )
    yield from _metric(
        "metric",
        "gauge",
        "what the script logs, mean over the newest version",
        [({"name": name}, value) for name, value in run["metrics"].items() if value is not None],
    )


def _metric(name: str, kind: str, text: str, values: Iterable[Value]) -> Iterator[str]:
    yield f"# HELP manyhands_{name} {text}"
    yield f"# TYPE manyhands_{name} {kind}"
    for labels, value in values:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"manyhands_{name}{{{inside}}} {value:.17g}" if inside else f"manyhands_{name} {value:.17g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
