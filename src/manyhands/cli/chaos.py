"""`manyhands chaos`: a training disturbed on purpose, beside the same training left alone."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from manyhands.cli.client import HubClient
from manyhands.cli.verdict import SETTLED_VERSIONS, verdict
from manyhands.cli.words import count, duration, number
from manyhands.core.membership import LIVE
from manyhands.core.storm import KINDS, Fault, draw
from manyhands.engines.chaos import LOOK_SECONDS, Injector, read_testimonies
from manyhands.engines.folder import find_run, how_it_ended, new_run_id, read_hub_file
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions
from manyhands.errors import ConfigurationError, ManyhandsError, UserError
from manyhands.hub.address import LOCK
from manyhands.hub.report import write_report
from manyhands.hub.summary import History, read_history, write_whole
from manyhands.worker.testimony import VARIABLE

LAST_LINES = 20
"""Of what workers printed, shown where the training fails."""

SAID = "chaos"
"""In the folder of a run: what its workers say of themselves."""


class OwnRun:
    """The processes of a run that was started here."""

    def __init__(self, run: LocalRun) -> None:
        self._run = run

    def workers(self) -> Mapping[str, int]:
        return self._run.worker_pids

    def hub(self) -> int | None:
        return self._run.hub_pid

    def port(self, worker: str) -> int | None:
        return _port(HubClient(self._run.url, self._run.token), worker)


class OtherRun:
    """The processes of a run that somebody else started on this host.

    A number that the hub was told, or that is left in a file, may be that of any process here: workers have
    the run's token in their environment, the hub holds the lock of its folder.
    """

    def __init__(self, client: HubClient, token: str, folder: Path) -> None:
        self._client, self._folder = client, folder
        self._entry = f"MANYHANDS_TOKEN={token}".encode()
        self._known: dict[str, int] = {}

    def workers(self) -> Mapping[str, int]:
        """As the hub last said."""
        with contextlib.suppress(ManyhandsError):
            living = (w for w in self._client.workers() if w["state"] in LIVE)
            self._known = {w["name"]: w["pid"] for w in living}
        return {name: pid for name, pid in self._known.items() if self._is_worker(pid)}

    def hub(self) -> int | None:
        told = read_hub_file(self._folder)
        return told.pid if told is not None and self._is_hub(told.pid) else None

    def _is_worker(self, pid: int) -> bool:
        try:
            return self._entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def _is_hub(self, pid: int) -> bool:
        try:
            inode = (self._folder / LOCK).stat().st_ino
            locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        except OSError:
            return False
        return any(lock[-4] == str(pid) and lock[-3].endswith(f":{inode}") for lock in locks)

    def port(self, worker: str) -> int | None:
        return _port(self._client, worker)


def _port(client: HubClient, worker: str) -> int | None:
    try:
        return next((int(w["port"]) for w in reversed(client.workers()) if w["name"] == worker), None)
    except (ManyhandsError, KeyError):
        return None


def kinds_of(text: str) -> tuple[str, ...]:
    """Raises ConfigurationError for a fault that there is not."""
    kinds = tuple(filter(None, (part.strip() for part in text.split(","))))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ConfigurationError(
            f"--faults {text} makes no sense: give some of {', '.join(KINDS)}, with commas"
        )
    return kinds


def drawn(seed: int, kinds: str, every: float, seconds: float, lease: float) -> tuple[Fault, ...]:
    """The faults of a storm. Raises ConfigurationError for one that cannot be drawn."""
    for option, value in (("--every", every), ("--seconds", seconds)):
        if not 0 < value < float("inf"):
            raise ConfigurationError(f"{option} {value:g} makes no sense: give seconds, more than 0")
    faults = draw(seed, kinds_of(kinds), every, seconds, lease)
    if not faults:
        raise ConfigurationError(
            f"a storm of {seconds:g} s with a fault every {every:g} s has none: give more --seconds, or a "
            "shorter --every"
        )
    return faults


def storm(options: LocalOptions, seed: int, every: float, seconds: float, kinds: str, baseline: bool) -> int:
    """Trains once undisturbed and once with faults, prints what they cost, and keeps it in chaos.json.

    Returns 0 where nothing was lost or counted twice, and the run came to its end.
    """
    faults = drawn(seed, kinds, every, seconds, options.lease)
    options.check()
    console = Console(highlight=False)
    folder = options.folder or options.runs / new_run_id()
    calm = None
    if baseline:
        console.print("undisturbed, to compare with:")
        left_alone = replace(options, folder=folder.with_name(f"{folder.name}-undisturbed"))
        calm, *_ = _trained(left_alone, (), seed, console)
    console.print(f"a storm of {count(len(faults), 'fault')}, seed {seed}:")
    history, injector, ended = _trained(replace(options, folder=folder), faults, seed, console)
    told = read_testimonies(folder / SAID)
    found = verdict(history, injector, calm, told, seconds)
    found["sound"] = found["sound"] and ended
    return _keep(found, injector, folder, console, seed)


def attached(run: str | None, seed: int, every: float, seconds: float, kinds: str, lease: float) -> int:
    """The same to a run that goes on on this host already, beside what it did before."""
    folder = find_run(run)
    if ended := how_it_ended(folder):
        raise ConfigurationError(f"the run in {folder} {ended}: attach to one that goes on")
    told = read_hub_file(folder)
    if told is None:
        raise ConfigurationError(f"no hub serves {folder}: attach to a run that goes on on this machine")
    client = HubClient(told.url, told.token)
    client.run()
    if "corrupt" in kinds_of(kinds):
        raise ConfigurationError(
            "only workers that `manyhands chaos` starts say where their state lies: leave out corrupt, or "
            "let it start the training"
        )
    console, faults = Console(highlight=False), drawn(seed, kinds, every, seconds, lease)
    console.print(f"a storm of {count(len(faults), 'fault')} over {folder}, seed {seed}:")
    injector, began = Injector(OtherRun(client, told.token, folder), faults, None, seed), time.time()
    injector.start()
    try:
        while (not injector.through or time.time() < began + seconds) and _goes_on(client):
            time.sleep(LOOK_SECONDS)
    finally:
        injector.stop()
    history = read_history(folder)
    calm = replace(history, versions=[version for version in history.versions if version.at < began])
    after = replace(history, versions=[version for version in history.versions if version.at >= began])
    return _keep(verdict(after, injector, calm, {}, seconds), injector, folder, console, seed)


def _goes_on(client: HubClient) -> bool:
    try:
        return client.run()["state"] not in ("finished", "failed", "stopped")
    except ManyhandsError:
        return True  # it was killed, and comes back


def _keep(found: dict[str, Any], injector: Injector, folder: Path, console: Console, seed: int) -> int:
    found |= {"seed": seed, "faults": injector.done}
    write_whole(folder / "chaos.json", json.dumps(found) + "\n")
    _print(console, found)
    console.print(f"kept in {folder / 'chaos.json'}, drawn in {write_report(folder)}")
    return 0 if found["sound"] else 1


def _trained(
    options: LocalOptions, faults: Sequence[Fault], seed: int, console: Console
) -> tuple[History, Injector, bool]:
    """What the run left, what was done to it, and whether it came to its end."""
    assert options.folder is not None
    folder = options.folder
    said = folder / SAID
    said.mkdir(parents=True, exist_ok=True)
    env = {**options.env, VARIABLE: str(said.absolute())}
    news: Any = console.print if faults else None
    said_last: deque[str] = deque(maxlen=LAST_LINES)
    # Those that are killed here are no fault of the training, and do not count against its limits.
    restarts, hub_restarts = (given + len(faults) for given in (options.max_restarts, options.hub_restarts))

    def line(worker: str, _: str, text: str) -> None:
        said_last.append(f"[{worker}] {text}" if worker else text)

    options = replace(options, env=env, max_restarts=restarts, hub_restarts=hub_restarts)
    run = LocalRun(options, line, news)
    injector = Injector(OwnRun(run), faults, said, seed)
    with run:
        _until_learning(run)
        injector.start()
        try:
            outcome = run.wait()
        finally:
            injector.stop()
    if outcome.code != 0:
        console.print("\n".join(said_last), markup=False)
        why = f"the training did not come to its end: {outcome.why}"
        if not faults:
            raise UserError(f"left alone, {why}; mend that first, or see it with `manyhands run`")
        console.print(why, markup=False)
    return read_history(folder), injector, outcome.code == 0


def _until_learning(run: LocalRun, seconds: float = 120.0) -> None:
    """Until something has been committed: faults before that are no fault of training."""
    client, deadline = HubClient(run.url, run.token), time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            status = client.run()
        except ManyhandsError:
            return
        if status["version"]["number"] >= SETTLED_VERSIONS or status["state"] in ("finished", "failed"):
            return
        time.sleep(0.05)


def _print(console: Console, found: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = {
        "faults": ", ".join(f"{times} × {kind}" for kind, times in found["done"].items()) or "none",
        "not done": "; ".join(f"{times} × {why}" for why, times in found["not_done"].items()),
        "goodput": f"{number(found['goodput'])} samples/s" + _beside(found),
        "recovery": _recovery(found["recovery"]),
        "samples": _balance(found["samples"]),
        "digests": _digests(found["digests"]),
        "flipped bits": _flipped(found["flipped"], found["digests"]),
        "last loss": f"{number(found['loss']['storm'])}, undisturbed {number(found['loss']['undisturbed'])}",
    }
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    console.print(table)


def _beside(found: dict[str, Any]) -> str:
    if found["ratio"] is None:
        return ""
    return (
        f", {found['ratio']:.0%} of {number(found['undisturbed'])} undisturbed; "
        f"{found['of_capacity']:.0%} of what the processes that could work allow ({found['capacity']:.0%})"
    )


def _recovery(recovery: dict[str, float] | None) -> str:
    if recovery is None:
        return ""
    return (
        f"longest wait for a version after a fault: {duration(recovery['median'])} in the median, "
        f"{duration(recovery['worst'])} at worst"
    )


def _balance(samples: dict[str, Any]) -> str:
    lost = "" if samples["lost"] is None else f"{number(samples['lost'])} lost, "
    rest = f"; {number(samples['unreached'])} not reached by then" if samples["unreached"] else ""
    return f"{lost}{number(samples['twice'])} twice, of {number(samples['total'])}, by {samples['by']}{rest}"


def _digests(digests: dict[str, Any] | None) -> str:
    if digests is None:
        return ""
    if digests["equal"]:
        return f"equal in {count(digests['versions'], 'version')}, but for flipped bits; one model at the end"
    return f"{count(digests['apart'], 'version')} apart, {count(digests['results'], 'model')} at the end"


def _flipped(flipped: dict[str, Any], digests: dict[str, Any] | None) -> str:
    if not flipped["done"]:
        return ""
    if digests is None:
        return f"{flipped['done']}, found {flipped['found']}"
    return (
        f"{flipped['done']}, found {flipped['found']}; {flipped['shown']} came to a digest, for "
        f"{count(digests['longest'], 'version')} at most"
    )
