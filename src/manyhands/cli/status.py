"""`manyhands status` and `manyhands report`: a run as tables, alive or from its folder."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from manyhands.cli.client import HubClient
from manyhands.cli.live import Glance, live_table
from manyhands.cli.words import balance, clock, duration, headline_metric, number, size
from manyhands.engines.folder import find_run, read_failures, read_hub_file
from manyhands.errors import ConfigurationError, HubUnreachable

_ROUNDS, _EVENTS = 8, 12


@dataclass(frozen=True)
class _Standing:
    glance: Glance
    rounds: list[dict[str, Any]]
    events: list[dict[str, Any]]


def show(run: str | None, hub: str | None, token: str | None) -> int:
    """Prints a run: from its hub where one answers, else from the journal in its folder."""
    console = Console(highlight=False)
    if hub is not None:
        if run is not None:
            raise ConfigurationError(f"give either the run {run} or --hub {hub}, not both")
        if token is None:
            raise ConfigurationError(f"the hub at {hub} wants a token: give --token or set MANYHANDS_TOKEN")
        _print(console, _ask(HubClient(hub, token)))
        return 0
    folder = find_run(run)
    told = read_hub_file(folder)
    with contextlib.suppress(HubUnreachable, ConfigurationError):
        client = HubClient(told.url, told.token, timeout=2.0) if told is not None else None
        if client is not None and told is not None and client.run_id() == told.run:
            _print(console, _ask(client))
            _print_failures(console, folder)
            return 0
    from manyhands.hub.summary import read_history, summarise

    print_summary(console, summarise(read_history(folder)))
    _print_failures(console, folder)
    console.print(Text(f"no hub serves {folder} just now", style="dim"))
    return 0


def write_and_show(run: str | None) -> int:
    """Draws the report of a run again."""
    from manyhands.hub.report import write_report
    from manyhands.hub.summary import write_summary

    folder = find_run(run)
    summary = write_summary(folder)
    path = write_report(folder)
    print_summary(Console(highlight=False), summary)
    print(path)
    return 0


def _ask(client: HubClient) -> _Standing:
    return _Standing(
        Glance(client.run(), client.workers()), client.rounds(_ROUNDS), client.events()[-_EVENTS:]
    )


def _print(console: Console, standing: _Standing) -> None:
    run = standing.glance.run
    console.print(live_table(standing.glance))
    if run["why"]:
        console.print(run["why"])
    if standing.rounds:
        console.print(_rounds(standing.rounds))
    if standing.events:
        console.print(_events(standing.events))


def _rounds(rounds: list[dict[str, Any]]) -> Table:
    name, _ = headline_metric(rounds[-1]["metrics"])
    table = _table("last rounds")
    for head in ("version", "at", "seconds", name, "samples", "contributors"):
        table.add_column(head, justify="left" if head in ("at", "contributors") else "right")
    for row in rounds:
        contributors = ", ".join(row["contributors"])
        rejected = "".join(f", {who} rejected: {why}" for who, why in row["rejected"].items())
        table.add_row(
            str(row["version"]),
            clock(row["at"]),
            f"{row['seconds']:.2f}",
            number(row["metrics"].get(name)),
            number(row["samples"]),
            Text(contributors + rejected),
        )
    return table


def _events(events: list[dict[str, Any]]) -> Table:
    table = _table("what happened")
    for head in ("at", "what", "who", ""):
        table.add_column(head)
    for row in events:
        table.add_row(clock(row["at"]), row["kind"], Text(row["who"]), Text(row["text"]))
    return table


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """The figures of summary.json as two tables."""
    loss, samples, sent = summary["loss"], summary["samples"], summary["bytes"]
    table = _table(f"{summary['run']}: {summary['state']}")
    table.show_header = False
    table.add_column(style="dim")
    table.add_column()
    rows = [
        ("version", f"{summary['version']} ({summary['versions']} in the journal)"),
        (loss["name"], f"{number(loss['first'])} → {number(loss['last'])} (best {number(loss['best'])})"),
        ("samples", f"{number(samples['committed'])} of {number(samples['total'])}"),
        ("", balance(samples)),
        ("samples/s", number(summary["samples_per_second"])),
        ("time", duration(summary["seconds"])),
        ("bytes", f"{size(sent['sent'])} sent, {size(sent['received'])} received"),
        ("faults", str(len(summary["faults"]))),
    ]
    rows += [("quarantined", f"{found['what']}: {found['why']}") for found in summary["quarantine"]]
    rows += [("", summary["why"])] if summary["why"] else []
    for head, text in rows:
        table.add_row(head, Text(text))
    console.print(table)
    faults = _table("faults")
    for head in ("at", "what", "who", "next commit", "back after", ""):
        faults.add_column(head)
    for fault, recovery in zip(summary["faults"], summary["recovery"], strict=True):
        faults.add_row(
            clock(fault["at"]),
            fault["kind"],
            Text(fault["who"]),
            duration(recovery["next_commit"]),
            duration(recovery["back"]),
            Text(fault["text"]),
        )
    if summary["faults"]:
        console.print(faults)


def _print_failures(console: Console, folder: Path) -> None:
    """The error with which each worker's script last ended; one line where several had the same."""
    alike: dict[str, list[tuple[str, float]]] = {}
    for worker, (at, error) in read_failures(folder).items():
        alike.setdefault(error, []).append((worker, at))
    table = _table("the script failed")
    for head in ("at", "worker", "with"):
        table.add_column(head)
    for error, ended in alike.items():
        workers = ", ".join(worker for worker, _ in ended)
        table.add_row(clock(max(at for _, at in ended)), Text(workers), Text(error))
    if alike:
        console.print(table)


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 3, 0, 0),
        header_style="dim",
    )
