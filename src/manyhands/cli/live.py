"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from manyhands.cli.client import HubClient
from manyhands.cli.words import clock, count, duration, headline_metric, number, size
from manyhands.errors import ManyhandsError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

POLL_SECONDS = 0.5
PLAIN_SECONDS = 5.0
NEWSWORTHY = ("joined", "lost", "evicted", "refused", "rejected", "rolled-back", "failed")
_MOST_WORKERS = 12
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red")


@dataclass(frozen=True)
class Glance:
    """The answers of /api/run and /api/workers at one moment."""

    run: dict[str, Any]
    workers: list[dict[str, Any]] = field(default_factory=list)


class Screen(Protocol):
    """Where a run is shown; its methods may be called from any thread."""

    def line(self, worker: str, stream: str, text: str) -> None:
        """A line that a worker printed; without a worker's name, one that they share."""

    def say(self, sentence: str) -> None:
        """Something that happened."""

    def glance(self, glance: Glance) -> None:
        """The newest figures."""

    def close(self) -> None:
        """Nothing more comes."""


class Watch:
    """Asks the hub each half second, in a thread, and shows what is new. A hub may be away for a time."""

    def __init__(self, client: HubClient, screen: Screen, seconds: float = POLL_SECONDS) -> None:
        self._client, self._screen, self._seconds = client, screen, seconds
        self._after = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10.0)

    def _poll(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                for event in self._client.events(self._after):
                    self._after = max(self._after, int(event["id"]))
                    if event["kind"] in NEWSWORTHY:
                        self._screen.say(event_line(event))
                self._screen.glance(Glance(self._client.run(), self._client.workers()))
            except ManyhandsError:
                continue


def event_line(event: dict[str, Any]) -> str:
    """``12:00:01 lost: worker 2: its connection broke``."""
    return f"{clock(event['at'])} {event['kind']}: {event['text']}"


def status_line(run: dict[str, Any]) -> str:
    """The run in one line."""
    name, value = headline_metric(run["metrics"])
    samples, workers = run["samples"], run["workers"]
    total = f"/{number(samples['total'])}" if samples["total"] else ""
    parts = [
        f"version {run['version']['number']}",
        f"{name} {number(value)}",
        f"{number(samples['committed'])}{total} samples",
        f"{number(samples['per_second'])} samples/s",
        f"{workers['live']} live, {workers['contributing']} contributing",
        f"{size(run['bytes']['sent'])} exchanged",
        count(run["faults"], "fault"),
    ]
    if run["time_left"] is not None:
        parts.append(f"{duration(run['time_left'])} left")
    return f"{run['state']}: " + " · ".join(parts)


class PlainScreen:
    """Lines and nothing else: prefixed output, and the status when it has changed, every five seconds."""

    def __init__(
        self,
        out: TextIO | None = None,
        err: TextIO | None = None,
        seconds: float = PLAIN_SECONDS,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._seconds, self._broken = seconds, broken
        self._lock = threading.RLock()
        self._shown = ""
        self._next = time.monotonic()

    def line(self, worker: str, stream: str, text: str) -> None:
        self._print(self._out if stream == "stdout" else self._err, f"[{worker}] {text}" if worker else text)

    def say(self, sentence: str) -> None:
        self._print(self._err, f"manyhands: {sentence}")

    def glance(self, glance: Glance) -> None:
        line = status_line(glance.run)
        version = str(glance.run["version"]) + str(glance.run["state"]) + str(glance.run["workers"])
        if time.monotonic() < self._next or version == self._shown:
            return
        self._next, self._shown = time.monotonic() + self._seconds, version
        self.say(line)

    def close(self) -> None:
        return

    def _print(self, stream: TextIO, text: str) -> None:
        with self._lock:
            try:
                print(text, file=stream, flush=True)
            except BrokenPipeError:
                self._broken()
            except UnicodeEncodeError:
                encoding = stream.encoding or "ascii"
                print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


class TerminalScreen:
    """The live table at the bottom of a terminal; what workers print goes by above it."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console as NewConsole
        from rich.live import Live

        self.console = console or NewConsole(highlight=False)
        self._live = Live(console=self.console, refresh_per_second=4, transient=True)
        self._live.start()

    def line(self, worker: str, stream: str, text: str) -> None:
        from rich.text import Text

        shown = Text.from_ansi(text)
        if worker:
            colour = _COLOURS[sum(worker.encode()) % len(_COLOURS)]
            shown = Text.assemble((f"[{worker}] ", colour), shown)
        elif stream == "stderr":
            shown.stylize("red")
        self.console.print(shown, soft_wrap=True)

    def say(self, sentence: str) -> None:
        from rich.text import Text

        self.console.print(Text.assemble(("manyhands: ", "bold"), sentence), soft_wrap=True)

    def glance(self, glance: Glance) -> None:
        self._live.update(live_table(glance))

    def close(self) -> None:
        self._live.stop()


def live_table(glance: Glance) -> RenderableType:
    """The run's figures, a bar over its samples, and a row for each worker."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    run = glance.run
    name, value = headline_metric(run["metrics"])
    samples, workers = run["samples"], run["workers"]
    short = workers["contributing"] < run["expected"] and run["state"] in ("training", "changing")
    figures = Table.grid(padding=(0, 3))
    for _ in range(7):
        figures.add_column(justify="left", no_wrap=True)
    heads = ("version", name, "samples/s", "live / contributing", "exchanged", "faults", "time left")
    figures.add_row(*(Text(head, style="dim") for head in heads))
    figures.add_row(
        str(run["version"]["number"]),
        Text(number(value), style="bold green"),
        number(samples["per_second"]),
        Text(f"{workers['live']} / {workers['contributing']}", style="yellow" if short else ""),
        size(run["bytes"]["sent"]),
        Text(str(run["faults"]), style="red" if run["faults"] else ""),
        duration(run["time_left"]),
    )
    parts: list[RenderableType] = [figures]
    if samples["total"]:
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        share = samples["committed"] / samples["total"]
        text = f"{number(samples['committed'])} of {number(samples['total'])} samples  {share:.0%}"
        bar.add_row(ProgressBar(samples["total"], min(samples["committed"], samples["total"])), text)
        parts.append(bar)
    parts.append(worker_table(glance.workers))
    title = f"[bold]manyhands[/] {run['run']} · {run['state']} · {duration(run['elapsed'])}"
    why = run["why"] if run["state"] in ("waiting", "changing") else ""
    return Panel(
        Group(*parts),
        title=title,
        subtitle=why,
        title_align="left",
        subtitle_align="left",
        border_style="dim",
    )


def worker_table(workers: list[dict[str, Any]]) -> RenderableType:
    """The newest incarnation of each worker by name, members first of all; at most a dozen."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", pad_edge=False)
    for head in ("worker", "rank", "state"):
        table.add_column(head, no_wrap=True)
    for head in ("committed", "sent", "received"):
        table.add_column(head, justify="right", no_wrap=True)
    newest = newest_incarnations(workers)
    for worker in newest[:_MOST_WORKERS]:
        lost = worker["state"] in ("lost", "left")
        rank = "–" if worker["rank"] is None else str(worker["rank"])
        state = Text(worker["state"], style="red" if worker["state"] == "lost" else "dim" if lost else "")
        table.add_row(
            worker["name"],
            rank,
            state,
            number(worker["committed"]),
            size(worker["sent"]),
            size(worker["received"]),
        )
    if len(newest) > _MOST_WORKERS:
        table.add_row(f"and {len(newest) - _MOST_WORKERS} more")
    return table


def newest_incarnations(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each name, with what all its incarnations committed, sent and received."""
    found: dict[str, dict[str, Any]] = {}
    for worker in sorted(workers, key=lambda worker: float(worker["joined"])):
        before = found.get(worker["name"])
        totals = ("committed", "sent", "received")
        sums = {total: worker[total] + (before[total] if before else 0) for total in totals}
        found[worker["name"]] = {**worker, **sums}
    return sorted(found.values(), key=lambda worker: (len(worker["name"]), worker["name"]))
