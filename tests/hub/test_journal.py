"""The journal: what is written is read back, whole or not at all, and every failure says what to do."""

import json
import math
import sqlite3
from pathlib import Path

import pytest

from manyhands.core.decisions import Note, Undone, VersionRecord, ViewRecord
from manyhands.core.messages import Contribution, Member, Version, View
from manyhands.errors import JournalError
from manyhands.hub.journal import Journal, SampleRow

VIEW = View(2, (Member("inc-a", "0", "h", 1), Member("inc-b", "1", "h", 2)))
OPENED = (100.0, ViewRecord(VIEW, 0, "both are ready"))


def version(number: int, *contributions: Contribution) -> VersionRecord:
    return VersionRecord(Version(number, 2), f"digest{number}", contributions, 2)


def both(number: int) -> VersionRecord:
    return version(
        number,
        Contribution("inc-a", 30.0, metrics={"loss": (60.0, 30.0)}),
        Contribution("inc-b", 10.0, metrics={"loss": (60.0, 10.0)}),
    )


@pytest.fixture
def journal(tmp_path: Path):
    with Journal(tmp_path / "hub.db") as journal:
        yield journal


def test_a_version_is_read_back_with_weighted_means_names_and_the_seconds_since_the_one_before(journal):
    journal.write([OPENED, (103.0, both(1)), (104.5, both(2))])
    first, second = journal.versions()
    assert (first.number, first.view, first.size, first.digest, first.at) == (1, 2, 2, "digest1", 103.0)
    assert first.seconds == 3.0  # since the view was opened
    assert second.seconds == 1.5
    assert first.metrics == {"loss": 3.0}
    assert first.contributors == {"0": 30.0, "1": 10.0}
    assert first.samples == 40.0
    assert journal.versions(last=1) == [second]
    assert journal.paces(last=5) == [(1.5, 40.0), (3.0, 40.0)]
    assert journal.committed() == {"inc-a": 60.0, "inc-b": 20.0}


def test_a_rejected_contribution_is_named_with_its_reason_and_counts_nothing(journal):
    bad = Contribution("inc-b", 0.0, metrics={"loss": (math.nan, 5.0)}, rejected="not a number")
    journal.write(
        [OPENED, (101.0, version(1, Contribution("inc-a", 8.0, metrics={"loss": (4.0, 8.0)}), bad))]
    )
    (row,) = journal.versions()
    assert row.rejected == {"1": "not a number"}
    assert row.contributors == {"0": 8.0}
    assert row.metrics == {"loss": 0.5}


def test_a_metric_that_is_not_finite_reads_none(journal):
    bad = Contribution("inc-a", 2.0, metrics={"loss": (math.inf, 2.0), "idle": (0.0, 0.0)})
    journal.write([OPENED, (101.0, version(1, bad))])
    assert journal.versions()[0].metrics == {"loss": None}


def test_a_version_written_twice_counts_once(journal):
    journal.write([OPENED, (101.0, both(1)), (102.0, both(1))])
    assert [row.at for row in journal.versions()] == [101.0]
    assert journal.committed() == {"inc-a": 30.0, "inc-b": 10.0}


def test_an_undone_version_leaves_the_history_and_the_counts(journal):
    journal.write([OPENED, (101.0, both(1)), (102.0, both(2))])
    journal.write([(103.0, Undone(Version(2, 2), "only the dead had it"))])
    assert [row.number for row in journal.versions()] == [1]
    assert journal.committed() == {"inc-a": 30.0, "inc-b": 10.0}


def test_views_events_samples_and_state_are_read_back_in_order(journal):
    sample = SampleRow(1.0, 4, 3, 10, 20, 30)
    journal.write(
        [
            OPENED,
            (1.0, Note("joined", "0", "worker 0 joined")),
            (2.0, Note("lost", "1", "gone")),
            (1.0, sample),
        ],
        coordinator=b"\x00blob",
    )
    (view,) = journal.views()
    assert (view.number, view.version, view.members, view.why) == (2, 0, ("0", "1"), "both are ready")
    first, second = journal.events()
    assert (first.kind, first.who, first.text, first.at) == ("joined", "0", "worker 0 joined", 1.0)
    assert journal.events(after=first.id) == [second]
    assert journal.events(limit=1) == [first]
    assert journal.samples() == [sample]
    assert journal.kinds() == {"joined": 1, "lost": 1}
    assert journal.faults() == 1
    assert journal.state("coordinator") == b"\x00blob"
    assert journal.state("nothing") is None


def test_everything_is_there_for_the_next_hub(tmp_path):
    with Journal(tmp_path / "hub.db") as journal:
        journal.write([OPENED, (101.0, both(1))], coordinator=b"one")
    with Journal(tmp_path / "hub.db") as journal:
        journal.write([(102.5, both(2))], coordinator=b"two")
        assert [row.contributors for row in journal.versions()] == [{"0": 30.0, "1": 10.0}] * 2
        assert journal.versions()[-1].seconds == 1.5
        assert journal.state("coordinator") == b"two"


def test_an_onlooker_reads_while_the_hub_writes_and_after_it_has_gone(tmp_path):
    path = tmp_path / "hub.db"
    with Journal(path) as journal:
        journal.write([OPENED])
        with Journal(path, readonly=True) as onlooker:
            journal.write([(101.0, both(1))])
            assert len(onlooker.versions()) == 1
            with pytest.raises(JournalError, match="read-only"):
                onlooker.write([(102.0, both(2))])
    with Journal(path, readonly=True) as onlooker:
        assert len(onlooker.versions()) == 1


def test_a_full_disk_keeps_the_whole_transaction_out_and_names_file_cause_and_remedy(journal):
    journal.write([OPENED], coordinator=b"before")
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages}")
    step = [(101.0, both(1)), (101.0, Note("view", "", "x" * 100_000))]
    with pytest.raises(JournalError) as caught:
        journal.write(step, coordinator=b"after")
    assert str(journal.path) in str(caught.value)
    assert "full" in str(caught.value)
    assert "free some space" in str(caught.value)
    assert journal.versions() == []
    assert journal.events() == []
    assert journal.state("coordinator") == b"before"

    journal._db.execute("PRAGMA max_page_count=100000")
    journal.write(step, coordinator=b"after")
    assert [row.contributors for row in journal.versions()] == [{"0": 30.0, "1": 10.0}]
    assert journal.state("coordinator") == b"after"


def test_a_locked_journal_says_that_another_process_holds_it(journal):
    other = sqlite3.connect(journal.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(
            JournalError, match=r"hub\.db cannot be written: another process.*close that process"
        ):
            journal.write([OPENED])
    finally:
        other.close()
    journal.write([OPENED])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"this is no database at all" * 100, "is not a journal.*choose another run folder"),
        (b"SQLite format 3\x00" + b"\xff" * 5000, "cannot be opened.*run folder"),
    ],
)
def test_a_file_that_is_no_journal_is_named_with_the_remedy(tmp_path, content, sentence):
    path = tmp_path / "hub.db"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=sentence):
        Journal(path)


def test_a_folder_that_is_not_there_is_named_with_the_remedy(tmp_path):
    with pytest.raises(
        JournalError, match=r"nowhere/hub\.db cannot be opened.*make sure that its folder exists"
    ):
        Journal(tmp_path / "nowhere" / "hub.db")


def test_a_journal_of_a_newer_manyhands_is_left_alone(tmp_path):
    path = tmp_path / "hub.db"
    with Journal(path) as journal:
        journal._db.execute("PRAGMA user_version=99")
    with pytest.raises(JournalError, match="newer manyhands"):
        Journal(path)


def test_the_columns_are_those_that_others_read(journal):
    journal.write([OPENED, (101.0, both(1))])
    row = journal._db.execute("SELECT metrics, contributors, rejected FROM versions").fetchone()
    assert [json.loads(text) for text in row] == [{"loss": 3.0}, {"0": 30.0, "1": 10.0}, {}]
    assert json.loads(journal._db.execute("SELECT members FROM views").fetchone()[0]) == ["0", "1"]
