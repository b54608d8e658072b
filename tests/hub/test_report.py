import json
import re
import sqlite3
from contextlib import closing
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import BEGAN, make_run

from manyhands._version import __version__
from manyhands.core.coordinator import Coordinator
from manyhands.core.decisions import Connected, Received
from manyhands.core.messages import Dataset, Declared, Hello
from manyhands.errors import JournalError, MachineError
from manyhands.hub.report import write_report
from manyhands.hub.series import align, rising, thin
from manyhands.hub.summary import write_summary


def figures(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page)[1])


def change(folder, *statements):
    with closing(sqlite3.connect(folder / "hub.db")) as journal, journal:
        for statement, values in statements:
            journal.execute(statement, values)


def test_the_summary_has_the_figures_of_the_journal(tmp_path):
    make_run(tmp_path)
    summary = write_summary(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["run"] == "synthetic"
    assert (summary["version"], summary["versions"]) == (120, 120)
    assert summary["samples"]["committed"] == 115 * 512 + 5 * 384
    assert summary["seconds"] == 62.0
    assert summary["samples_per_second"] == pytest.approx(summary["samples"]["committed"] / 60.0)
    assert summary["loss"]["name"] == "loss"
    assert summary["loss"]["best"] <= summary["loss"]["last"] < summary["loss"]["first"]
    assert summary["bytes"] == {"sent": 480_000_000, "received": 480_000_000}
    assert summary["workers"]["0"] == {"samples": 15360.0, "contributions": 120, "joined": 1, "lost": 0}
    assert summary["workers"]["2"] == {"samples": 14720.0, "contributions": 115, "joined": 2, "lost": 1}


def coordinator_with_data() -> Coordinator:
    coordinator = Coordinator("synthetic", expected=2)
    hello = Hello(run="synthetic", incarnation="a", name="0", pid=1, host="h", port=1, software=__version__)
    coordinator.handle(Connected(hello), BEGAN)
    data = Dataset(index=0, length=100, batch_size=5, epochs=3, order="free", seed=0)
    coordinator.handle(Received("a", Declared(data)), BEGAN)
    return coordinator


@pytest.mark.parametrize(("running", "state"), [(b"yes", "waiting"), (b"", "stopped")])
def test_state_and_totals_are_those_of_the_coordinator(tmp_path, running, state):
    make_run(tmp_path, versions=2)
    blob = coordinator_with_data().snapshot()
    change(
        tmp_path,
        ("INSERT INTO state VALUES ('coordinator', ?)", (blob,)),
        ("UPDATE state SET value = ? WHERE key = 'running'", (running,)),
    )
    summary = write_summary(tmp_path)
    assert summary["state"] == state
    assert summary["samples"] == {
        "committed": 0,
        "quarantined": 0,
        "total": 300,
        "missing": 300,
        "twice": 0,
        "read": 0,
    }
    page = write_report(tmp_path).read_text()
    assert f'<span class="state {state}">' in page
    assert "not reached / twice" in page


def test_without_a_partition_there_is_no_total(tmp_path):
    make_run(tmp_path, versions=2, faults=False)
    change(tmp_path, ("INSERT INTO state VALUES ('coordinator', ?)", (Coordinator("synthetic").snapshot(),)))
    samples = write_summary(tmp_path)["samples"]
    assert samples == {
        "committed": 1024.0,
        "quarantined": None,
        "total": None,
        "missing": None,
        "twice": None,
        "read": 0,
    }


def test_each_fault_has_its_time_to_the_next_commit_and_to_the_workers_return(tmp_path):
    make_run(tmp_path)
    summary = write_summary(tmp_path)
    assert [fault["kind"] for fault in summary["faults"]] == ["lost", "hub", "rejected"]
    lost, hub, rejected = summary["recovery"]
    assert (lost["who"], lost["next_commit"], lost["back"]) == ("2", pytest.approx(0.4), pytest.approx(2.9))
    assert (hub["next_commit"], hub["back"]) == (pytest.approx(0.4), None)
    assert rejected["back"] is None


def test_a_version_made_before_a_loss_and_told_after_it_is_not_the_recovery(tmp_path):
    make_run(tmp_path, versions=30)
    change(
        tmp_path,
        ("UPDATE versions SET view = 2 WHERE number > 10", ()),
        ("UPDATE events SET at = at - 0.2 WHERE kind = 'lost'", ()),
    )
    (lost, *_) = write_summary(tmp_path)["recovery"]
    assert (lost["next_commit"], lost["back"]) == (pytest.approx(0.6), pytest.approx(3.1))


def test_a_fault_after_the_last_version_has_no_recovery(tmp_path):
    make_run(tmp_path, versions=3, faults=False)
    late = ("INSERT INTO events(at, kind, who, text) VALUES (?, 'lost', '1', 'gone')", (BEGAN + 99.0,))
    change(tmp_path, late)
    assert write_summary(tmp_path)["recovery"] == [
        {"at": BEGAN + 99.0, "kind": "lost", "who": "1", "next_commit": None, "back": None}
    ]


def test_a_metric_that_is_not_called_loss_is_shown_and_not_judged(tmp_path):
    make_run(tmp_path, versions=2)
    change(tmp_path, ("UPDATE versions SET metrics = ?", ('{"reward": 2.5}',)))
    assert write_summary(tmp_path)["loss"] == {"name": "reward", "first": 2.5, "last": 2.5, "best": None}


class Page(HTMLParser):
    """Collects what a page would fetch, and checks that its elements close."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.seen = [], [], []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value]
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            continue


@pytest.mark.parametrize("versions", [0, 1, 2, 120])
def test_the_report_is_one_page_that_needs_nothing_else(tmp_path, versions):
    make_run(tmp_path, versions=versions, faults=versions > 9)
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    text = path.read_text()
    page = Page()
    page.feed(text)
    assert page.fetched == []
    assert "b" in page.seen
    assert not re.search(r"@import|url\((?!data:)|fetch\(|XMLHttpRequest", text)
    assert "{{" not in re.sub(r"<script.*?</script>|not a number.*?</td>", "", text, flags=re.DOTALL)
    shown = figures(text)
    assert len(shown["metrics"]["loss"]["value"]) == versions if versions else shown["metrics"] == {}
    assert len({len(column) for column in shown["pool"]}) == 1
    assert len({len(column) for column in shown["bytes"]}) == 1


def test_every_fault_is_marked_where_it_happened(tmp_path):
    make_run(tmp_path)
    shown = figures(write_report(tmp_path).read_text())
    assert [(mark["kind"], mark["version"]) for mark in shown["faults"]] == [
        ("lost", 41),
        ("hub", 61),
        ("rejected", 71),
    ]
    assert shown["faults"][0]["time"] == pytest.approx(22.1)
    assert [mark["kind"] for mark in shown["returns"]] == ["joined", "healed"]


STORM = {
    "faults": [
        {"at": BEGAN + 22.0, "kind": "kill", "who": "2", "pid": 7, "seconds": 0.0, "failed": ""},
        {"at": BEGAN + 32.0, "kind": "stop", "who": "1", "pid": 8, "seconds": 4.5, "failed": ""},
        {"at": BEGAN + 42.0, "kind": "cut", "who": "0", "pid": 9, "seconds": 0.0, "failed": "needs root"},
    ],
    "counts": {
        "processes": [[BEGAN + 20, 4, 4.0], [BEGAN + 22, 3, 3.0], [BEGAN + 24, 4, 4.0]],
        "versions": [[BEGAN + 21, 4, 4], [BEGAN + 23, 3, 2]],
    },
    "goodput": 95.0,
    "undisturbed": 100.0,
    "ratio": 0.95,
    "capacity": 0.97,
    "of_capacity": 0.98,
    "recovery": {"median": 0.4, "worst": 2.1},
    "samples": {"lost": 0, "twice": 0, "by": "the workers", "total": 10, "committed": 10, "unreached": 0},
    "digests": {"equal": True, "apart": 0, "results": 1},
    "flipped": {"done": 2, "shown": 2, "found": 2},
    "loss": {"storm": 1.21, "undisturbed": 1.2},
}


def test_a_storm_is_drawn_by_what_was_done_beside_the_undisturbed_run(tmp_path):
    make_run(tmp_path)
    calm = write_report(tmp_path).read_text()
    assert "storm</h2>" not in calm
    assert figures(calm)["storm"] is None
    (tmp_path / "chaos.json").write_text(json.dumps(STORM))
    text = write_report(tmp_path).read_text()
    assert "<h2>the storm</h2>" in text
    assert "<th>samples/s</th><td>95</td><td>100</td>" in text
    assert "by the workers</th><td>0 / 0</td>" in text
    shown = figures(text)
    assert [(mark["kind"], mark["text"]) for mark in shown["faults"]] == [
        ("kill", "worker 2"),
        ("stop", "worker 1, for 4.50 s"),
    ]
    times, able, contributed, combined = shown["storm"]
    assert times == [20, 21, 22, 23, 24]
    assert able == [4, 4, 3, 3, 4]
    assert (contributed, combined) == ([None, 4, 4, 3, 3], [None, 4, 4, 2, 2])


def test_what_is_no_storm_is_left_out(tmp_path):
    make_run(tmp_path, versions=2)
    (tmp_path / "chaos.json").write_text('{"faults": [')
    assert "storm</h2>" not in write_report(tmp_path).read_text()


def test_text_of_the_run_cannot_become_part_of_the_page(tmp_path):
    make_run(tmp_path)
    evil = "</script><script>alert(1)</script>{{chart.js}}"
    change(
        tmp_path,
        ("UPDATE events SET text = ?, who = ?", (evil, evil)),
        ("UPDATE state SET value = ? WHERE key = 'run'", (evil.encode(),)),
        ("UPDATE versions SET contributors = ?", (json.dumps({evil: 3.0}),)),
        ("UPDATE versions SET metrics = ?", (json.dumps({evil: 3.0}),)),
    )
    text = write_report(tmp_path).read_text()
    assert "<script>alert" not in text
    assert text.count("</script>") == 3
    assert figures(text)["faults"][0]["text"] == evil


def test_a_long_run_is_thinned_and_keeps_its_extremes(tmp_path):
    make_run(tmp_path, versions=20_000)
    change(
        tmp_path,
        ("UPDATE versions SET metrics = '{\"loss\": 99.0}' WHERE number = 7777", ()),
        ("UPDATE versions SET metrics = '{\"loss\": -9.0}' WHERE number = 7778", ()),
        ("UPDATE versions SET metrics = '{\"loss\": null}' WHERE number = 7779", ()),
    )
    text = write_report(tmp_path).read_text()
    shown = figures(text)
    line = shown["metrics"]["loss"]
    assert len(line["value"]) <= 2000
    assert (max(line["value"]), min(line["value"])) == (99.0, -9.0)
    assert (line["version"][0], line["version"][-1]) == (1, 20_000)
    assert min(value for value in shown["pool"][2] if value is not None) == 3.0
    assert len(shown["pool"][0]) <= 2000
    assert len(text) < 600_000


def test_many_events_are_cut_to_the_newest(tmp_path):
    make_run(tmp_path, versions=2, faults=False)
    with closing(sqlite3.connect(tmp_path / "hub.db")) as journal, journal:
        journal.executemany(
            "INSERT INTO events(at, kind, who, text) VALUES (?, 'lost', '1', 'again')",
            [(BEGAN + at,) for at in range(5000)],
        )
    text = write_report(tmp_path).read_text()
    assert "The newest 500 of 5,000 faults." in text
    assert len(figures(text)["faults"]) == 400
    assert len(text) < 600_000


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(JournalError, match=re.escape(str(tmp_path / "hub.db"))):
        write_report(tmp_path)


def test_a_report_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    make_run(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(MachineError, match=r"report.html cannot be written .*: free some space"):
        write_report(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@given(st.lists(st.floats(-1e9, 1e9), max_size=300), st.integers(4, 50))
def test_thinning_keeps_the_ends_and_the_extremes(values, most):
    xs, ys = thin(list(range(len(values))), values, most)
    assert len(xs) <= max(most, 1)
    assert xs == sorted(set(xs))
    assert [values[x] for x in xs] == ys
    if values:
        assert (ys[0], ys[-1]) == (values[0], values[-1])
        assert (min(ys), max(ys)) == (min(values), max(values))


def test_two_lines_share_an_axis_and_hold_their_values():
    assert align(([0.0, 2.0], [1.0, 2.0]), ([1.0, 2.0], [7.0, 8.0])) == (
        [0.0, 1.0, 2.0],
        [1.0, 1.0, 2.0],
        [None, 7.0, 8.0],
    )


def test_a_counter_never_falls():
    assert rising([1, 5, 2, 3]) == [1.0, 5.0, 5.0, 6.0]
