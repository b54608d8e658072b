"""The picture of a run: one page that needs nothing else, in light and dark."""

from __future__ import annotations

import json
import re
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from manyhands.hub.figures import duration, number, short, size
from manyhands.hub.journal import FAULTS, EventRow, VersionRow
from manyhands.hub.series import align, rising, thin
from manyhands.hub.storm import Storm, counts, faults, read_storm, section
from manyhands.hub.summary import History, headline, read_history, summarise, write_whole

_STATIC = Path(__file__).with_name("static")
_MOST_METRICS = 8
_MOST_MARKS = 400
_MOST_EVENTS = 500
_RETURNS = ("joined", "healed")


def write_report(folder: Path) -> Path:
    """Writes `report.html` into the run's folder and returns its path.

    Raises `JournalError` where there is no run, `MachineError` where the page cannot be written.
    """
    path = folder / "report.html"
    write_whole(path, page(read_history(folder), read_storm(folder)))
    return path


def page(history: History, storm: Storm | None = None) -> str:
    """The whole page, with scripts, styles and figures inside."""
    summary = summarise(history)
    figures = json.dumps(chart_data(history, summary["started"] or 0.0, storm), allow_nan=False)
    parts = {
        "title": escape(f"{summary['run']} · manyhands"),
        "chart.css": (_STATIC / "uPlot.min.css").read_text(),
        "report.css": (_STATIC / "report.css").read_text(),
        "chart.js": (_STATIC / "uPlot.iife.min.js").read_text(),
        "report.js": (_STATIC / "report.js").read_text(),
        "figures": figures.replace("<", "\\u003c"),  # no text of the run can end the script element
        "head": _head(summary),
        "tiles": _tiles(summary),
        "storm": section(storm),
        "workers": _workers(summary),
        "quarantine": _quarantine(summary),
        "faults": _faults(summary),
        "events": _events(history.events, summary["started"]),
    }
    template = (_STATIC / "report.html").read_text()
    return re.sub(r"\{\{([a-z.]+)\}\}", lambda match: parts[match[1]], template)


def chart_data(history: History, began: float, storm: Storm | None = None) -> dict[str, Any]:
    """What the charts draw; times are seconds since the run began. At most 2000 points a line.

    The faults marked are those that the hub noticed; of a storm, those that were done.
    """
    versions, events, moments = history.versions, history.events, history.moments
    contributing = thin(
        [version.at - began for version in versions],
        [float(sum(samples > 0 for samples in version.contributors.values())) for version in versions],
        1000,
    )
    times = [moment.at - began for moment in moments]
    live = thin(times, [float(moment.live) for moment in moments], 1000)
    sent, received = (
        thin(times, rising([getattr(moment, name) for moment in moments])) for name in ("sent", "received")
    )
    marked = [event for event in events if event.kind in FAULTS] if storm is None else faults(storm)
    returns = [event for event in events if event.kind in _RETURNS and marked and event.at > marked[0].at]
    return {
        "metric": headline(versions),
        "metrics": _metrics(versions, began),
        "pool": align(live, contributing),
        "bytes": align(sent, received),
        "storm": None if storm is None else counts(storm, began),
        "faults": _marks(marked, versions, began),
        "returns": _marks(returns, versions, began),
    }


def _metrics(versions: Sequence[VersionRow], began: float) -> dict[str, Any]:
    """By name: the version numbers, times and values of each metric."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row, version in enumerate(versions):
        for name, value in version.metrics.items():
            if value is not None and (name in found or len(found) < _MOST_METRICS):
                rows, values = found.setdefault(name, ([], []))
                rows.append(row)
                values.append(value)
    drawn: dict[str, Any] = {}
    for name, line in found.items():
        rows, values = thin(*line)
        drawn[name] = {
            "version": [versions[row].number for row in rows],
            "time": [versions[row].at - began for row in rows],
            "value": values,
        }
    return drawn


def _marks(events: Sequence[EventRow], versions: Sequence[VersionRow], began: float) -> list[dict[str, Any]]:
    """The newest of these events, each with its time and the version that was committed next."""
    moments = [version.at for version in versions]
    marks = []
    for event in events[-_MOST_MARKS:]:
        next_one = bisect_left(moments, event.at)
        number = versions[min(next_one, len(versions) - 1)].number if versions else 0
        marks.append(
            {
                "time": event.at - began,
                "version": number,
                "kind": event.kind,
                "who": event.who,
                "text": event.text,
            }
        )
    return marks


# --- what can be read without the charts -------------------------------------------------------------


def _head(summary: Mapping[str, Any]) -> str:
    started = summary["started"]
    when = time.strftime("%d %B %Y, %H:%M:%S", time.localtime(started)) if started else "not started"
    told = [
        when,
        f"took {duration(summary['seconds'])}",
        *([summary["strategy"]] if summary["strategy"] else []),
    ]
    state = escape(summary["state"])
    why = f'<p class="why">{escape(summary["why"])}</p>' if summary["why"] else ""
    return (
        f'<h1>{escape(summary["run"])} <span class="state {state}">{state}</span></h1>'
        f"<p>{escape(' · '.join(told))}</p>{why}"
    )


def _tiles(summary: Mapping[str, Any]) -> str:
    loss, samples, sent = summary["loss"], summary["samples"], summary["bytes"]
    pace = f"one in {duration(summary['seconds_per_version'])}" if summary["versions"] else ""
    course = f"{short(loss['first'])} → {short(loss['last'])}" if loss["first"] is not None else "–"
    best = f"best {number(loss['best'])}" if loss["best"] is not None else ""
    total = f"of {number(samples['total'])}" if samples["total"] else ""
    total += f", {number(samples['quarantined'])} quarantined" if samples["quarantined"] else ""
    lacking = "not reached" if samples["missing"] else "missing"  # no epoch ends without all of it
    exact = samples["missing"] is not None and samples["twice"] is not None
    balance = f"{number(samples['missing'])} / {number(samples['twice'])}" if exact else "–"
    well = "good" if samples["twice"] == 0 and samples["missing"] == 0 else "bad" if samples["twice"] else ""
    faults = len(summary["faults"])
    recovered = [each["next_commit"] for each in summary["recovery"] if each["next_commit"] is not None]
    slowest = f"≤ {duration(max(recovered))} to commit" if recovered else ""
    tiles = [
        ("version", number(summary["version"]), pace, ""),
        (f"{loss['name']}, first → last", course, best, ""),
        ("samples committed", number(samples["committed"]), total, ""),
        (f"{lacking} / twice", balance, "samples", well),
        ("samples/s", number(summary["samples_per_second"]), "over all versions", ""),
        ("bytes sent", size(sent["sent"]), f"{size(sent['received'])} received", ""),
        ("faults", number(faults), slowest, ""),
    ]
    return "".join(
        f'<div class="tile {kind}"><span>{escape(label)}</span><b>{escape(value)}</b>'
        f"<small>{escape(note)}</small></div>"
        for label, value, note, kind in tiles
    )


def _workers(summary: Mapping[str, Any]) -> str:
    workers = summary["workers"]
    if not workers:
        return '<p class="nothing">No worker has contributed yet.</p>'
    most = max(worker["samples"] for worker in workers.values()) or 1.0
    rows = []
    for name, worker in workers.items():
        lost = f"lost {worker['lost']}×" if worker["lost"] else ""
        rows.append(
            f"<tr><th>{escape(name)}</th>"
            f'<td class="bar">{_bar(worker["samples"] / most)}</td>'
            f"<td>{number(worker['samples'])}</td><td>{_count(worker['contributions'], 'version')}</td>"
            f'<td class="lost">{lost}</td></tr>'
        )
    return f'<div class="scroll"><table class="bars">{"".join(rows)}</table></div>'


def _quarantine(summary: Mapping[str, Any]) -> str:
    if not summary["quarantine"]:
        return ""
    rows = "".join(
        f"<tr><td>{escape(found['what'])}</td><td>{escape(found['why'])}</td></tr>"
        for found in summary["quarantine"]
    )
    head = "<tr><th>learned from by nobody</th><th>why</th></tr>"
    return (
        '<section class="card wide"><h2>quarantined samples, by their own indices</h2>'
        f"<div class=scroll><table>{head}{rows}</table></div></section>"
    )


def _faults(summary: Mapping[str, Any]) -> str:
    if not summary["faults"]:
        return '<p class="nothing">None.</p>'
    began = summary["started"] or 0.0
    pairs = list(zip(summary["faults"], summary["recovery"], strict=True))
    rows = [
        f"<tr><td>{duration(fault['at'] - began)}</td><td>{_kind(fault['kind'])}</td>"
        f"<td>{escape(fault['who'])}</td><td class=number>{duration(recovery['next_commit'])}</td>"
        f"<td class=number>{duration(recovery['back'])}</td><td>{escape(fault['text'])}</td></tr>"
        for fault, recovery in pairs[-_MOST_EVENTS:]
    ]
    head = (
        "<tr><th>after</th><th>what</th><th>who</th><th class=number>to the next commit</th>"
        "<th class=number>to contribute again</th><th>in words</th></tr>"
    )
    return f"{_left_out(len(pairs), 'faults')}<div class=scroll><table>{head}{''.join(rows)}</table></div>"


def _events(events: Sequence[EventRow], started: float | None) -> str:
    if not events:
        return '<p class="nothing">Nothing happened yet.</p>'
    rows = [
        f"<tr><td>{duration(event.at - (started or 0.0))}</td><td>{_kind(event.kind)}</td>"
        f"<td>{escape(event.who)}</td><td>{escape(event.text)}</td></tr>"
        for event in events[-_MOST_EVENTS:]
    ]
    head = "<tr><th>after</th><th>what</th><th>who</th><th>in words</th></tr>"
    return f"{_left_out(len(events), 'events')}<div class=scroll><table>{head}{''.join(rows)}</table></div>"


def _left_out(count: int, what: str) -> str:
    return f"<p>The newest {_MOST_EVENTS} of {count:,} {what}.</p>" if count > _MOST_EVENTS else ""


def _kind(kind: str) -> str:
    return f'<span class="kind {escape(kind)}">{escape(kind)}</span>'


def _bar(share: float) -> str:
    return f'<i style="width:{100 * share:.2f}%"></i>' if share else ""


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
