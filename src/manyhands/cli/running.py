"""A supervised run in the foreground: signals, the screen, the last lines. For `run` and `join`."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from manyhands.cli.client import HubClient
from manyhands.cli.live import Beginning, Course, PlainScreen, Screen, TerminalScreen, Watch
from manyhands.cli.words import balance, count, duration, number, size
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions, Outcome
from manyhands.errors import ManyhandsError

_ORDERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def supervise(options: LocalOptions, plain: bool) -> int:
    """Runs until the end; Ctrl-C once lets everybody leave, twice kills. Returns the exit code."""
    terminal = not plain and sys.stdout.isatty()
    run: LocalRun
    screen: Screen = TerminalScreen() if terminal else PlainScreen(broken=lambda: run.stop(141, "stopped"))
    run = LocalRun(options, screen.line, screen.say)
    began = time.time()
    try:
        run.start()
        with _obeying_signals(run, screen):
            outcome = _watched(run, screen)
    finally:
        screen.close()
    if not isinstance(screen, PlainScreen):
        screen = PlainScreen()
    _say_how_it_ended(outcome, began, screen)
    return outcome.code


def _watched(run: LocalRun, screen: Screen) -> Outcome:
    shown = Course if run.options.hub is None else Beginning  # who is elsewhere sees the rest on its screen
    watch = Watch(shown(HubClient(run.url, run.token), screen).look)
    watch.start()
    try:
        return run.wait()
    finally:
        watch.stop()


@contextlib.contextmanager
def _obeying_signals(run: LocalRun, screen: Screen) -> Iterator[None]:
    orders = 0

    def obey(number: int, _: FrameType | None) -> None:
        nonlocal orders
        orders += 1
        name = signal.Signals(number).name
        if orders == 1:
            screen.say("stopping: everybody leaves in order; Ctrl-C again kills at once")
            run.stop(128 + number, f"stopped by {name}")
        else:
            run.kill(128 + number, f"killed by {name}")

    before = {number: signal.signal(number, obey) for number in _ORDERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_how_it_ended(outcome: Outcome, began: float, screen: Screen) -> None:
    lasted = f"after {duration(outcome.seconds)}"
    screen.say(f"ended {lasted}: {outcome.why}" if outcome.code == 1 else f"{outcome.why} {lasted}")
    if outcome.folder is None:
        return
    try:
        summary = _summary(outcome.folder, began)
    except ManyhandsError as error:
        screen.say(str(error))  # how the run itself ended stands
        return
    if summary is not None and summary["versions"]:
        screen.say(in_short(summary))
        for found in summary["quarantine"]:
            screen.say(f"nobody learned from {found['what']}{': ' if found['why'] else ''}{found['why']}")
    if summary is not None:
        screen.say(f"report: {outcome.folder / 'report.html'}")


def _summary(folder: Path, began: float) -> dict[str, Any] | None:
    """What the hub left behind when it ended; written here if it was killed before it could."""
    path = folder / "summary.json"
    if not (folder / "hub.db").exists():
        return None
    if path.exists() and path.stat().st_mtime >= began and (folder / "report.html").exists():
        with contextlib.suppress(ValueError, OSError):
            found: dict[str, Any] = json.loads(path.read_text())
            return found
    from manyhands.hub.report import write_report
    from manyhands.hub.summary import write_summary

    write_report(folder)
    return write_summary(folder)


def in_short(summary: dict[str, Any]) -> str:
    """A run's summary in one line."""
    loss, samples = summary["loss"], summary["samples"]
    parts = [f"version {summary['version']}"]
    if loss["last"] is not None:
        parts.append(f"{loss['name']} {number(loss['first'])} → {number(loss['last'])}")
    if samples["total"] is not None:
        parts.append(
            f"{number(samples['committed'])} of {number(samples['total'])} samples ({balance(samples)})"
        )
    parts.append(f"{number(summary['samples_per_second'])} samples/s")
    parts.append(f"{size(summary['bytes']['sent'])} sent")
    parts.append(count(len(summary["faults"]), "fault"))
    return " · ".join(parts)
