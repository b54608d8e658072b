"""What the benchmark of storms makes of files and moments. The figures themselves are never judged here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the benchmark's model needs PyTorch")

from benchmarks import storm  # noqa: E402
from benchmarks.rows import CannotRun, Row  # noqa: E402
from benchmarks.standing import RECORD, arrivals, came, committed_at, share_of_capacity  # noqa: E402
from benchmarks.storm_peers import Processes, Standing, Weather  # noqa: E402

CALM = Weather(workers=4, pace=0.1, lease=3.0, calm=10.0, seconds=100.0, kills=())


def test_a_killed_worker_cannot_work_until_its_successor_has_come() -> None:
    came_at = [(1.0, "0", 1), (1.0, "1", 2), (15.0, "1", 3), (18.0, "0", 4)]
    assert share_of_capacity({}, came_at, 4, 10.0, 50.0) == 1.0
    assert share_of_capacity({10.0: "0"}, came_at, 4, 10.0, 50.0) == pytest.approx(1 - 8 / 4 / 40)
    assert share_of_capacity({10.0: ""}, came_at, 4, 10.0, 50.0) == pytest.approx(1 - 5 / 4 / 40)


def test_who_never_came_back_is_away_to_the_end() -> None:
    assert share_of_capacity({30.0: "0"}, [(1.0, "0", 1)], 2, 10.0, 50.0) == pytest.approx(1 - 20 / 2 / 40)


def test_what_was_gone_back_to_a_checkpoint_does_not_count(tmp_path: Path) -> None:
    told = [(1.0, 4.0), (2.0, 8.0), (9.0, 4.0), (10.0, 8.0)]
    (tmp_path / "committed-0").write_bytes(b"".join(RECORD.pack(*each) for each in told) + b"torn")
    assert [committed_at(tmp_path, at) for at in (0.0, 2.5, 9.5, 99.0)] == [0.0, 8.0, 4.0, 8.0]


def test_the_one_that_lives_speaks_for_the_one_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "committed-0").write_bytes(RECORD.pack(1.0, 4.0))
    (tmp_path / "committed-1").write_bytes(RECORD.pack(1.0, 4.0) + RECORD.pack(2.0, 7.0))
    assert committed_at(tmp_path, 5.0) == 7.0


def test_a_process_is_there_from_when_it_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_FOLDER", str(tmp_path))
    assert Processes(tmp_path).workers() == {}
    committed = came("3")
    committed(12)
    (tmp_path / "came-2-999999999").touch()
    assert Processes(tmp_path).workers() == {"3": os.getpid()}
    assert [(name, pid) for _, name, pid in arrivals(tmp_path) if name == "3"] == [("3", os.getpid())]
    assert committed_at(tmp_path, 1e12) == 12.0


def test_a_peer_stands_beside_ours_with_its_steps_and_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storm, "standing", lambda *_: Standing(40.0, 19.0, 0.95, 15))
    row = storm.beside("torchrun", {"EveryStep": 90.0}, CALM)
    assert (row.value, row.peer_value, row.ratio) == (90.0, pytest.approx(50.0), pytest.approx(1.8))
    assert row.note == "kills alone, 15: 475 of 1000 steps kept, 52 of 100 s lost, 95.0 % could work"


def test_a_peer_that_cannot_run_has_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def standing(*_: object) -> Standing:
        raise CannotRun("it cannot be installed: no wheel")

    monkeypatch.setattr(storm, "standing", standing)
    row = storm.beside("torchft", {"EveryStep": 90.0}, CALM)
    assert (row.value, row.peer, row.note) == (90.0, None, "torchft: it cannot be installed: no wheel")


def test_what_is_asked_at_least_is_met_from_there_on() -> None:
    assert [Row("x", value, "%", least=80.0).met for value in (79.9, 80.0)] == [False, True]
    assert Row("x", 1.0, "%", least=80.0).asked == "≥ 80 %"
