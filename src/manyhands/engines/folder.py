"""The folder of a run: its name, who holds it, and what the hub left in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from manyhands.errors import ConfigurationError, MachineError


@dataclass(frozen=True)
class HubFile:
    """What a hub that is ready writes into ``hub.json``. `written` is the file's time, in nanoseconds."""

    url: str
    pid: int
    run: str
    token: str
    written: int


def new_run_id() -> str:
    """Date and time, so that names sort by age, and four random hexadecimal digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def claim(folder: Path) -> IO[bytes]:
    """Makes the folder, and holds it as long as the file returned is open.

    Raises `MachineError` where it cannot be written, `ConfigurationError` where another launcher holds it
    or its run has ended.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "launcher.lock").open("wb")
    except OSError as error:
        raise MachineError(
            f"the run folder {folder} cannot be written ({error.strerror}): choose another with --folder"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ConfigurationError(
            f"another `manyhands run` works in {folder}: wait for it, stop it, or choose another --folder"
        ) from None
    if ended := how_it_ended(folder):
        lock.close()
        raise ConfigurationError(f"the run in {folder} {ended}: choose another --folder, or give none")
    (folder / "failures.json").unlink(missing_ok=True)
    return lock


def read_hub_file(folder: Path) -> HubFile | None:
    """The newest hub that was ready on this folder, alive or not; None before the first."""
    try:
        with (folder / "hub.json").open() as file:
            told = json.load(file)
            written = os.fstat(file.fileno()).st_mtime_ns
        return HubFile(str(told["url"]), int(told["pid"]), str(told["run"]), str(told["token"]), written)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_failure(folder: Path, worker: str, error: str) -> None:
    """Keeps the error that ended this worker's script in ``failures.json``, in place of its last one."""
    told = {**read_failures(folder), worker: (time.time(), error)}
    with contextlib.suppress(OSError):
        (folder / "failures.json").write_text(json.dumps(told))


def read_failures(folder: Path) -> dict[str, tuple[float, str]]:
    """By worker, when its script last failed (Unix seconds) in the launcher's newest start, and with what."""
    try:
        told = json.loads((folder / "failures.json").read_text())
        return {worker: (float(at), str(error)) for worker, (at, error) in told.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def find_run(name: str | None, runs: Path = Path("runs")) -> Path:
    """The folder of a run, by path or by id; without a name the one that was written to last.

    Raises `ConfigurationError` where there is none.
    """
    if name is not None:
        for folder in (Path(name), runs / name):
            if (folder / "hub.db").exists() or (folder / "hub.json").exists():
                return folder
        raise ConfigurationError(
            f"no run at {name} or {runs / name}: give a run's folder or its id (a folder in {runs}/)"
        )
    found = list(runs.glob("*/hub.db"))
    if not found:
        raise ConfigurationError(f"no run in {runs}/ yet: start one with `manyhands run -n 4 train.py`")
    return max(found, key=lambda journal: (journal.stat().st_mtime_ns, journal)).parent


def committed_since(folder: Path, moment: float, worker: str | None = None) -> bool:
    """Whether the journal holds a version committed after `moment` (Unix seconds), by this worker or any."""
    query = "SELECT 1 FROM versions WHERE at > ?"
    if worker is not None:
        query += " AND EXISTS (SELECT 1 FROM json_each(contributors) WHERE key = ? AND value > 0)"
    parameters = (moment,) if worker is None else (moment, worker)
    return bool(_ask(folder, query + " LIMIT 1", parameters))


def how_it_ended(folder: Path) -> str:
    """``finished at 2026-11-23 10:15 (why)``, as the journal has it; "" where it has no end."""
    query = "SELECT kind, at, text FROM events WHERE kind IN ('finished', 'stopped', 'failed')"
    for kind, at, why in _ask(folder, query):
        return f"{kind} at {time.strftime('%Y-%m-%d %H:%M', time.localtime(float(str(at))))} ({why})"
    return ""


def end_is_known(folder: Path) -> bool:
    """Whether the journal holds the end of the run; a run without a version has none to wait for."""
    query = "SELECT EXISTS (SELECT 1 FROM state WHERE key = 'ended') OR NOT EXISTS (SELECT 1 FROM versions)"
    return _ask(folder, query) != [(0,)]


def saw_the_end(folder: Path, worker: str, moment: float) -> bool:
    """Whether the run has finished, and a worker that failed at `moment` was there to its last version.

    It was gone from when it left the pool, though its process may have taken a while to end.
    """
    query = (
        "SELECT 1 FROM versions WHERE number = (SELECT max(number) FROM versions) "
        "AND (at <= coalesce((SELECT max(at) FROM events WHERE who = :who AND at <= :moment AND "
        "kind IN ('left', 'lost', 'evicted')), :moment) "
        "OR EXISTS (SELECT 1 FROM json_each(contributors) WHERE key = :who)) "
        "AND EXISTS (SELECT 1 FROM events WHERE kind = 'finished')"
    )
    return bool(_ask(folder, query, {"who": worker, "moment": moment}))


def joined_since(folder: Path, worker: str, moment: float) -> bool:
    """Whether the hub has taken this worker in after `moment`."""
    query = "SELECT 1 FROM events WHERE kind = 'joined' AND who = ? AND at > ?"
    return bool(_ask(folder, query, (worker, moment)))


def left_since(folder: Path, worker: str, moment: float) -> bool:
    """Whether the hub has heard after `moment` that this worker is gone."""
    query = "SELECT 1 FROM events WHERE kind IN ('left', 'lost', 'evicted') AND who = ? AND at > ?"
    return bool(_ask(folder, query, (worker, moment)))


def out_since_the_end(folder: Path, worker: str) -> bool:
    """Whether the run has finished, and this worker had lost its place before, and has not come back."""
    query = (
        "SELECT 1 FROM events WHERE kind = 'finished' AND (SELECT kind FROM events WHERE who = ? AND kind IN "
        "('joined', 'left', 'lost', 'evicted') ORDER BY id DESC LIMIT 1) IN ('lost', 'evicted')"
    )
    return bool(_ask(folder, query, (worker,)))


def failures_at_data(folder: Path, worker: str, moment: float = 0.0) -> list[str]:
    """How the hub has judged the failures of this worker after `moment` that were at a batch, in order.

    ``bad-data``: there somebody had failed before. ``suspect``: other batches had gone well since its start.
    ``batch-failed``: neither.
    """
    query = (
        "SELECT kind FROM events WHERE kind IN ('bad-data', 'suspect', 'batch-failed') "
        "AND who = ? AND at > ? ORDER BY id"
    )
    return [str(kind) for (kind,) in _ask(folder, query, (worker, moment))]


def _ask(
    folder: Path, query: str, parameters: tuple[object, ...] | dict[str, object] = ()
) -> list[tuple[object, ...]]:
    """The answer of the journal; nothing while it cannot be read."""
    journal = f"{(folder / 'hub.db').absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(journal, uri=True, timeout=1.0)) as connection:
            return connection.execute(query, parameters).fetchall()
    except sqlite3.Error:
        return []
