"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from manyhands.cli.client import HubClient
from manyhands.cli.words import clock, count, duration, headline_metric, number, size
from manyhands.errors import ManyhandsError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text

POLL_SECONDS = 0.5
PLAIN_SECONDS = 5.0
REMIND_SECONDS = 10.0
NEWSWORTHY = (
    "joined",
    "lost",
    "evicted",
    "barred",
    "refused",
    "rejected",
    "rolled-back",
    "restored",
    "checkpoint-failed",
    "failed",
    "quarantined",
    "epoch",
)
_MOST_WORKERS = 12
_GAP = 3
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
    """Looks each half second, in a thread."""

    def __init__(self, look: Callable[[], None], seconds: float = POLL_SECONDS) -> None:
        self._look, self._seconds = look, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10.0)

    def _poll(self) -> None:
        self._look()
        while not self._stop.wait(self._seconds):
            self._look()


class Course:
    """Shows what is new in a run. Its hub may be away for a time."""

    def __init__(self, client: HubClient, screen: Screen) -> None:
        self._client, self._screen = client, screen
        self._after = 0
        self._told = ""

    def look(self) -> None:
        with contextlib.suppress(ManyhandsError):
            for event in self._client.events(self._after):
                self._after = max(self._after, int(event["id"]))
                if event["kind"] in NEWSWORTHY:
                    self._screen.say(event_line(event))
            run = self._client.run()
            if run["exchange"] not in ("", self._told):
                self._told = run["exchange"]
                self._screen.say(f"sharing by {run['strategy']}, through {self._told}")
            self._screen.glance(Glance(run, self._client.workers()))


class Beginning:
    """Says what a run waits for, at once and then every ten seconds; once it has begun, how it stands."""

    def __init__(self, client: HubClient, screen: Screen, seconds: float = REMIND_SECONDS) -> None:
        self._client, self._screen, self._seconds = client, screen, seconds
        self._next, self._begun = 0.0, False

    def look(self) -> None:
        if self._begun:
            return
        try:
            run = self._client.run()
            self._begun = run["state"] != "waiting"
            sentence = status_line(run) if self._begun else str(run["why"])
        except ManyhandsError as error:
            sentence = str(error)
        if self._begun or time.monotonic() >= self._next:
            self._next = time.monotonic() + self._seconds
            self._screen.say(sentence)


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
        f"{count(workers['live'], 'worker')}, {workers['contributing']} in the newest version",
        f"{size(run['bytes']['sent'])} sent",
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
        from rich.constrain import Constrain

        # The terminal echoes ^C behind the last line: wrapped, it would shift what is erased.
        self._live.update(Constrain(live_table(glance), self.console.width - len("^C")))

    def close(self) -> None:
        self._live.stop()


def live_table(glance: Glance) -> RenderableType:
    """The run's figures, what it waits for, a bar over its samples, and a row for each worker."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    run = glance.run
    parts: list[RenderableType] = [_figures(run)]
    if run["state"] in ("waiting", "changing") and run["why"]:
        parts.append(Text(run["why"], style="yellow"))
    if run["samples"]["total"]:
        parts.append(_bar(run["samples"]))
    parts += worker_table(glance.workers)
    title = f"[bold]manyhands[/] {run['run']} · {run['state']} · {duration(run['elapsed'])}"
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim")


def _figures(run: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    name, value = headline_metric(run["metrics"])
    workers, faults = run["workers"], run["faults"]
    short = workers["contributing"] < run["expected"] and run["state"] in ("training", "changing")
    columns: dict[str, str | Text] = {
        "version": str(run["version"]["number"]),
        name: Text(number(value), style="bold green"),
        "samples/s": number(run["samples"]["per_second"]),
        "workers": str(workers["live"]),
        "in version": Text(str(workers["contributing"]), style="yellow" if short else ""),
        "sent": size(run["bytes"]["sent"]),
        "faults": Text(str(faults), style="red" if faults else ""),
        "time left": duration(run["time_left"]),
    }
    return Columns(
        tuple(columns), [tuple(columns.values())], least=("sent", "in version", "faults", "time left")
    )


def _bar(samples: dict[str, Any]) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    committed, total = samples["committed"], samples["total"]
    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True, justify="right")
    text = f"{number(committed)} of {number(total)} samples  {committed / total:.0%}"
    bar.add_row(ProgressBar(total, min(committed, total)), text)
    return bar


def worker_table(workers: list[dict[str, Any]]) -> list[RenderableType]:
    """The newest incarnation of each worker by name; at most a dozen."""
    from rich.text import Text

    newest = newest_incarnations(workers)
    rows = [
        (
            Text(worker["name"]),
            "–" if worker["rank"] is None else str(worker["rank"]),
            Text(worker["state"], style={"lost": "red", "left": "dim"}.get(worker["state"], "")),
            number(worker["committed"]),
            size(worker["sent"]),
            size(worker["received"]),
        )
        for worker in newest[:_MOST_WORKERS]
    ]
    heads = ("worker", "rank", "state", "committed", "sent", "received")
    table = Columns(heads, rows, least=("received", "sent", "rank"), right=("committed", "sent", "received"))
    more = len(newest) - _MOST_WORKERS
    return [table, Text(f"and {more} more", style="dim")] if more > 0 else [table]


@dataclass(frozen=True)
class Columns:
    """A table that fits: where there is no room for all columns, those in `least` are left out, one by one.

    The first column is cut where even that is not enough. Those in `right` are aligned so.
    """

    heads: tuple[str, ...]
    rows: Sequence[tuple[str | Text, ...]]
    least: tuple[str, ...]
    right: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.table import Table
        from rich.text import Text

        kept = list(range(len(self.heads)))
        for head in self.least:
            if self._width(kept) > options.max_width:
                kept.remove(self.heads.index(head))
        table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="dim", pad_edge=False)
        for place in kept:
            justify: Literal["left", "right"] = "right" if self.heads[place] in self.right else "left"
            table.add_column(Text(self.heads[place]), justify=justify, no_wrap=place > 0, overflow="ellipsis")
        for row in self.rows:
            table.add_row(*(row[place] for place in kept))
        yield table

    def _width(self, kept: list[int]) -> int:
        widest = (max(len(row[place]) for row in (self.heads, *self.rows)) for place in kept)
        return sum(widest) + _GAP * (len(kept) - 1)


def newest_incarnations(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each name: what those incarnations that the hub remembers committed, sent and received."""
    found: dict[str, dict[str, Any]] = {}
    for worker in sorted(workers, key=lambda worker: float(worker["joined"])):
        before = found.get(worker["name"])
        totals = ("committed", "sent", "received")
        sums = {total: worker[total] + (before[total] if before else 0) for total in totals}
        found[worker["name"]] = {**worker, **sums}
    return sorted(found.values(), key=lambda worker: (len(worker["name"]), worker["name"]))
