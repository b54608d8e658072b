"""The run's memory on disk: versions, views, events and the coordinator's state, in one SQLite file.

Whatever the hub tells a worker is in here first, so a hub that was killed takes up where it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from manyhands.core.decisions import Note, Restored, Undone, VersionRecord, ViewRecord
from manyhands.core.messages import Contribution, Version
from manyhands.errors import JournalError

SCHEMA = 1
BUSY_SECONDS = 0.25
FAULTS = ("lost", "evicted", "rejected", "hub", "restored", "checkpoint-failed")

_TABLES = """
CREATE TABLE IF NOT EXISTS state(key TEXT PRIMARY KEY, value BLOB);
CREATE TABLE IF NOT EXISTS versions(
  number INT, view INT, at REAL, seconds REAL, digest TEXT, samples REAL, metrics TEXT,
  contributors TEXT, rejected TEXT, size INT, PRIMARY KEY(number, view));
CREATE TABLE IF NOT EXISTS views(
  number INTEGER PRIMARY KEY, at REAL, version INT, members TEXT, why TEXT, incarnations TEXT);
CREATE TABLE IF NOT EXISTS events(id INTEGER PRIMARY KEY, at REAL, kind TEXT, who TEXT, text TEXT);
CREATE TABLE IF NOT EXISTS samples(
  at REAL, live INT, contributing INT, sent INT, received INT, read INT);
CREATE TABLE IF NOT EXISTS committed(incarnation TEXT PRIMARY KEY, samples REAL);
"""

# What the user can do about it, by the beginning of SQLite's name for the error.
_REMEDIES = (
    ("SQLITE_FULL", "the disk or the quota is full", "free some space there"),
    ("SQLITE_IOERR", "the disk reports an input/output error", "free some space or mend the disk"),
    ("SQLITE_BUSY", "another process holds it locked", "close that process"),
    ("SQLITE_LOCKED", "another process holds it locked", "close that process"),
    ("SQLITE_READONLY", "it is read-only", "make the file and its folder writable"),
    ("SQLITE_PERM", "permission is denied", "make the file and its folder writable"),
    ("SQLITE_CANTOPEN", "it cannot be opened", "make sure that its folder exists and is writable"),
    ("SQLITE_NOTADB", "it is not a journal", "move it away or choose another run folder"),
    ("SQLITE_CORRUPT", "it is damaged", "restore it from a copy or choose another run folder"),
)


class VersionRow(msgspec.Struct, frozen=True):
    """A committed version: seconds since the one before, metrics as means, samples by worker's name.

    A metric that is not a finite number reads None.
    """

    number: int
    view: int
    at: float
    seconds: float
    digest: str
    samples: float
    metrics: dict[str, float | None]
    contributors: dict[str, float]
    rejected: dict[str, str]
    size: int


class ViewRow(msgspec.Struct, frozen=True):
    """A membership: the version number at which it took effect, the members' names in rank order."""

    number: int
    at: float
    version: int
    members: tuple[str, ...]
    why: str


class EventRow(msgspec.Struct, frozen=True):
    """Something that happened, in words."""

    id: int
    at: float
    kind: str
    who: str
    text: str


class SampleRow(msgspec.Struct, frozen=True):
    """The pool at one moment: workers, and totals of bytes and of samples read since the start."""

    at: float
    live: int
    contributing: int
    sent: int
    received: int
    read: int


Record = VersionRecord | ViewRecord | Undone | Restored | Note | SampleRow


class Journal:
    """The journal at `path`; every method raises `JournalError` naming the file, the cause, the remedy.

    `readonly` is for those who look on (a report): nothing is created, nothing locked.
    """

    def __init__(self, path: Path, readonly: bool = False) -> None:
        self.path = Path(path)
        self._members: tuple[int, dict[str, str]] = (-1, {})
        try:
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
            )
            try:
                self._prepare(readonly)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise self._error("opened", error) from error

    def _prepare(self, readonly: bool) -> None:
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA:
            raise JournalError(
                f"the journal {self.path} is of a newer manyhands (format {found}, this one knows {SCHEMA}): "
                "upgrade manyhands or choose another run folder"
            )
        if readonly:
            return
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(_TABLES)
        self._db.execute(f"PRAGMA user_version={SCHEMA}")

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- writing ---------------------------------------------------------------------------------

    def write(
        self, records: Iterable[tuple[float, Record]], *, lasting: bool = False, **state: bytes
    ) -> None:
        """Add records, each with its time, and replace entries of the state: all of it or nothing.

        Where a machine loses its power, the last may be lost, but none that is `lasting`, nor any before it.
        """
        try:
            self._db.execute(f"PRAGMA synchronous={'FULL' if lasting else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for at, record in records:
                    self._add(at, record)
                self._db.executemany(
                    "INSERT INTO state VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value",
                    state.items(),
                )
                self._db.execute("COMMIT")
            except BaseException:
                self._members = (-1, {})
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._error("written", error) from error

    def _add(self, at: float, record: Record) -> None:
        if isinstance(record, VersionRecord):
            self._add_version(at, record)
        elif isinstance(record, ViewRecord):
            self._add_view(at, record)
        elif isinstance(record, Undone):
            self._undo(record.version)
        elif isinstance(record, Restored):
            later = self._db.execute(
                "SELECT number, view FROM versions WHERE number > ?", (record.version.number,)
            )
            for number, view in later.fetchall():
                self._undo(Version(number, view))
        elif isinstance(record, SampleRow):
            self._db.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?)", msgspec.structs.astuple(record))
        else:
            self._db.execute(
                "INSERT INTO events(at, kind, who, text) VALUES (?, ?, ?, ?)",
                (at, record.kind, record.who, record.text),
            )

    def _add_version(self, at: float, record: VersionRecord) -> None:
        version = record.version
        names = self._names(version.view)
        counted = [c for c in record.contributions if not c.rejected]
        before = self._db.execute(
            "SELECT at FROM versions ORDER BY number DESC, view DESC LIMIT 1"
        ).fetchone()
        if before is None:  # the first version took from the moment there was somebody to make it
            before = self._db.execute("SELECT min(at) FROM views").fetchone()
        seconds = max(0.0, at - before[0]) if before[0] is not None else 0.0
        added = self._db.execute(
            "INSERT OR IGNORE INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                version.number,
                version.view,
                at,
                seconds,
                record.digest,
                sum(sum(map(len, c.spans)) if record.partitioned else c.weight for c in counted),
                _json(means(record.contributions)),
                _json(_summed((names.get(c.incarnation, c.incarnation), c.weight) for c in counted)),
                _json(
                    {
                        names.get(c.incarnation, c.incarnation): c.rejected
                        for c in record.contributions
                        if c.rejected
                    }
                ),
                record.view_size,
            ),
        )
        if added.rowcount:  # a version that is reported twice counts once
            self._count([(c.incarnation, c.weight) for c in counted])

    def _add_view(self, at: float, record: ViewRecord) -> None:
        members = record.view.members
        self._db.execute(
            "INSERT OR REPLACE INTO views VALUES (?, ?, ?, ?, ?, ?)",
            (
                record.view.number,
                at,
                record.at,
                _json([m.name for m in members]),
                record.why,
                _json([m.incarnation for m in members]),
            ),
        )

    def _undo(self, version: Version) -> None:
        key = (version.number, version.view)
        row = self._db.execute(
            "SELECT contributors FROM versions WHERE number = ? AND view = ?", key
        ).fetchone()
        if row is None:
            return
        incarnations = {name: incarnation for incarnation, name in self._names(version.view).items()}
        contributors = msgspec.json.decode(row[0], type=dict[str, float])
        self._count([(incarnations.get(name, name), -samples) for name, samples in contributors.items()])
        self._db.execute("DELETE FROM versions WHERE number = ? AND view = ?", key)

    def _count(self, samples: Sequence[tuple[str, float]]) -> None:
        self._db.executemany(
            "INSERT INTO committed VALUES (?, ?) "
            "ON CONFLICT(incarnation) DO UPDATE SET samples = samples + excluded.samples",
            samples,
        )

    def _names(self, view: int) -> dict[str, str]:
        """The members' names by incarnation."""
        if self._members[0] != view:
            row = self._db.execute(
                "SELECT incarnations, members FROM views WHERE number = ?", (view,)
            ).fetchone()
            if row is None:
                return {}
            self._members = (view, dict(zip(_list(row[0]), _list(row[1]), strict=True)))
        return self._members[1]

    # --- reading ---------------------------------------------------------------------------------

    def state(self, key: str) -> bytes | None:
        """An entry of the state table: "coordinator" (its snapshot), "run", "started", "ended" (seconds)."""
        rows = self._read("SELECT value FROM state WHERE key = ?", (key,))
        return bytes(rows[0][0]) if rows else None

    def versions(self, last: int | None = None) -> list[VersionRow]:
        """The newest `last` versions (all of them without it), the newest last."""
        rows = self._read(
            "SELECT number, view, at, seconds, digest, samples, metrics, contributors, rejected, size "
            "FROM versions ORDER BY number DESC, view DESC LIMIT ?",
            (-1 if last is None else max(0, last),),
        )
        decode = msgspec.json.decode
        return [VersionRow(*[*row[:6], *map(decode, row[6:9]), row[9]]) for row in reversed(rows)]

    def paces(self, last: int) -> list[tuple[float, float]]:
        """(seconds, samples) of the newest versions, the newest first."""
        return self._read(
            "SELECT seconds, samples FROM versions ORDER BY number DESC, view DESC LIMIT ?", (last,)
        )

    def views(self) -> list[ViewRow]:
        """Every membership, oldest first."""
        rows = self._read("SELECT number, at, version, members, why FROM views ORDER BY number")
        return [ViewRow(*[*row[:3], tuple(_list(row[3])), row[4]]) for row in rows]

    def events(self, after: int = 0, limit: int = -1) -> list[EventRow]:
        """What happened after the event with this id, oldest first."""
        rows = self._read(
            "SELECT id, at, kind, who, text FROM events WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        )
        return [EventRow(*row) for row in rows]

    def samples(self) -> list[SampleRow]:
        """About one row a second, oldest first."""
        rows = self._read("SELECT at, live, contributing, sent, received, read FROM samples ORDER BY at")
        return [SampleRow(*row) for row in rows]

    def committed(self) -> dict[str, float]:
        """Samples in committed versions by incarnation."""
        return dict(self._read("SELECT incarnation, samples FROM committed"))

    def kinds(self) -> dict[str, int]:
        """How many events there are of each kind."""
        return dict(self._read("SELECT kind, count(*) FROM events GROUP BY kind"))

    def faults(self) -> int:
        """How many events were faults: a worker lost, evicted or rejected, the hub restarted."""
        return sum(count for kind, count in self.kinds().items() if kind in FAULTS)

    def _read(self, query: str, values: tuple[object, ...] = ()) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._error("read", error) from error

    def _error(self, done: str, error: sqlite3.Error) -> JournalError:
        name = getattr(error, "sqlite_errorname", "") or ""
        for beginning, cause, remedy in _REMEDIES:
            if name.startswith(beginning):
                return JournalError(f"the journal {self.path} cannot be {done}: {cause} ({error}); {remedy}")
        return JournalError(
            f"the journal {self.path} cannot be {done}: {error}; check the run folder and its disk"
        )


def means(contributions: Iterable[Contribution]) -> dict[str, float]:
    """The weighted mean of each metric over those contributions that were not rejected."""
    sums: dict[str, tuple[float, float]] = {}
    for contribution in contributions:
        if contribution.rejected:
            continue
        for name, (value, weight) in contribution.metrics.items():
            old = sums.get(name, (0.0, 0.0))
            sums[name] = (old[0] + value, old[1] + weight)
    return {name: value / weight for name, (value, weight) in sums.items() if weight}


def _summed(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums by name: two workers may have the same."""
    sums: dict[str, float] = {}
    for name, samples in pairs:
        sums[name] = sums.get(name, 0.0) + samples
    return sums


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()  # a float that is not finite becomes null


def _list(text: str) -> list[str]:
    return msgspec.json.decode(text, type=list[str])
