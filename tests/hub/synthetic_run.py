"""A journal as a run with faults leaves it, made by hand."""

import json
import math
import random
import sqlite3
from contextlib import closing
from pathlib import Path

BEGAN = 1_795_000_000.0
TABLES = """
CREATE TABLE state(key TEXT PRIMARY KEY, value BLOB);
CREATE TABLE versions(number INT, view INT, at REAL, seconds REAL, digest TEXT, samples REAL, metrics TEXT,
  contributors TEXT, rejected TEXT, size INT, PRIMARY KEY(number, view));
CREATE TABLE views(number INTEGER PRIMARY KEY, at REAL, version INT, members TEXT, why TEXT,
  incarnations TEXT);
CREATE TABLE events(id INTEGER PRIMARY KEY, at REAL, kind TEXT, who TEXT, text TEXT);
CREATE TABLE samples(at REAL, live INT, contributing INT, sent INT, received INT, read INT);
CREATE TABLE committed(incarnation TEXT PRIMARY KEY, samples REAL);
"""


def make_run(folder: Path, versions: int = 120, faults: bool = True, seconds: float = 0.5) -> None:
    """Four workers, a version each `seconds`; worker 2 is lost after a third, and back 6 versions later."""
    dice = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    lost, back = versions // 3, versions // 3 + 6
    version_rows, sample_rows = [], []
    for number in range(1, versions + 1):
        at = BEGAN + 2.0 + seconds * number
        away = faults and lost < number < back
        contributors = {name: 128.0 for name in "0123" if not (away and name == "2")}
        loss = 1.2 + 2.2 * math.exp(-6.0 * number / versions) + dice.gauss(0.0, 0.04)
        metrics = json.dumps({"loss": loss, "accuracy": 1.0 - loss / 4.0})
        samples = sum(contributors.values())
        version_rows.append(
            (number, 1, at, seconds, "d", samples, metrics, json.dumps(contributors), "{}", len(contributors))
        )
        sent = 4_000_000 * number
        sample_rows.append((at, 3 if away else 4, len(contributors), sent, sent, 512 * number))
    moment = BEGAN + 2.0 + seconds * lost + 0.1
    events = [
        (BEGAN + 1.0 + place / 10, "joined", name, f"worker {name}") for place, name in enumerate("0123")
    ]
    if faults:
        events += [
            (moment, "lost", "2", "worker 2 lost: its connection broke"),
            (moment + 2 * seconds, "joined", "2", "worker 2"),
            (moment + 4 * seconds, "healed", "2", "worker 2 healed from worker 0"),
            (moment + 20 * seconds, "hub", "", "the hub is back after it was killed"),
            (moment + 30 * seconds, "rejected", "3", "worker 3: <b>not a number</b> in {{figures}}"),
        ]
    with closing(sqlite3.connect(folder / "hub.db")) as journal, journal:
        journal.executescript(TABLES)
        journal.executemany("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", version_rows)
        journal.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?)", sample_rows)
        journal.executemany("INSERT INTO events(at, kind, who, text) VALUES (?, ?, ?, ?)", events)
        state = {"run": b"synthetic", "started": str(BEGAN).encode(), "running": b""}
        journal.executemany("INSERT INTO state VALUES (?, ?)", state.items())
