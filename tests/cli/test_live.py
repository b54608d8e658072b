import io
import threading

import pytest
from canned_hub import RUN, TOKEN, WORKERS, canned_hub
from rich.console import Console

from manyhands.cli.client import HubClient
from manyhands.cli.live import (
    Beginning,
    Course,
    Glance,
    PlainScreen,
    TerminalScreen,
    Watch,
    live_table,
    newest_incarnations,
    status_line,
)
from manyhands.cli.words import balance, duration, headline_metric, number, size
from manyhands.errors import HubUnreachable


def drawn(renderable, width=100):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(renderable)
    return console.file.getvalue()


def test_the_table_shows_what_a_person_wants_to_know():
    text = drawn(live_table(Glance(RUN, WORKERS)))
    for word in (
        "r1",
        "training",
        "7",
        "1.25",
        "256",
        "in version",
        "12.3 MB",
        "1,024 of 4,096 samples",
        "25%",
        "12.0 s",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("width", "shown", "left_out"),
    [
        (120, ("in version", "sent", "received", "rank"), ()),
        (78, ("in version", "samples/s", "time left", "received"), ("12.3 MB",)),
        (60, ("samples/s", "time left", "received"), ("in version", "12.3 MB")),
        (46, ("samples/s", "committed"), ("faults", "received")),
    ],
)
def test_the_table_leaves_columns_out_rather_than_cut_words(width, shown, left_out):
    text = drawn(live_table(Glance({**RUN, "state": "changing", "why": "worker 1 joins"}, WORKERS)), width)
    assert all(word in text for word in (*shown, "worker 1 joins"))
    assert not any(word in text for word in left_out)
    assert "…" not in text


def test_of_a_long_name_the_end_is_cut():
    workers = [{**WORKERS[0], "name": "a-machine-of-the-university-" * 3}]
    text = drawn(live_table(Glance(RUN, workers)), 60)
    assert "a-machine-of-the-university-" in text
    assert "committed" in text


def test_a_run_that_has_just_begun_can_be_shown():
    empty = {
        **RUN,
        "state": "waiting",
        "metrics": {},
        "samples": {"committed": 0, "total": 0, "per_second": 0.0, "read": 0, "missing": 0, "twice": 0},
        "time_left": None,
    }
    assert "waiting" in drawn(live_table(Glance(empty, [])))
    assert "loss –" in status_line(empty)


def test_a_worker_that_came_back_is_one_row_with_the_sum_of_what_it_did():
    rows = newest_incarnations(WORKERS)
    assert [(row["name"], row["state"], row["committed"]) for row in rows] == [
        ("0", "member", 256.0),
        ("1", "healing", 512.0),
    ]


def test_the_status_is_one_line():
    assert status_line(RUN) == (
        "training: version 7 · loss 1.25 · 1,024/4,096 samples · 256 samples/s"
        " · 2 workers, 1 in the newest version · 12.3 MB sent · 1 fault · 12.0 s left"
    )


def test_plain_lines_carry_the_workers_name_and_are_otherwise_untouched():
    out, err = io.StringIO(), io.StringIO()
    screen = PlainScreen(out, err)
    screen.line("0", "stdout", "  [bold]x[/bold] \x1b[31mred")
    screen.line("1", "stderr", "warning")
    screen.line("", "stderr", "Traceback (most recent call last):")
    screen.say("restarting")
    assert out.getvalue() == "[0]   [bold]x[/bold] \x1b[31mred\n"
    assert err.getvalue() == "[1] warning\nTraceback (most recent call last):\nmanyhands: restarting\n"


def test_the_plain_status_comes_when_it_has_changed_and_not_too_often():
    err = io.StringIO()
    screen = PlainScreen(io.StringIO(), err, seconds=3600.0)
    screen.glance(Glance(RUN))
    screen.glance(Glance({**RUN, "version": {"number": 8, "view": 1}}))
    assert err.getvalue().count("training: version") == 1
    eager = PlainScreen(io.StringIO(), err, seconds=0.0)
    for version in (8, 8, 9):
        eager.glance(Glance({**RUN, "version": {"number": version, "view": 1}}))
    assert err.getvalue().count("training: version") == 3


def test_a_reader_that_has_gone_is_reported_and_not_raised():
    class Gone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    gone = threading.Event()
    screen = PlainScreen(Gone(), io.StringIO(), broken=gone.set)
    screen.line("0", "stdout", "x")
    assert gone.is_set()


def test_what_the_encoding_of_the_output_lacks_is_replaced():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    PlainScreen(out, out).line("0", "stdout", "2 → 1")
    out.seek(0)
    assert out.read() == "[0] 2 ? 1\n"


def test_on_a_terminal_lines_pass_above_the_table():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)
    screen = TerminalScreen(console)
    screen.glance(Glance(RUN, WORKERS))
    screen.line("3", "stdout", "a [line] of output")
    screen.say("worker 3 was killed")
    screen.close()
    text = console.file.getvalue()
    assert "a [line] of output" in text
    assert "worker 3 was killed" in text


class Heard:
    """A screen that remembers, and tells when it has seen two glances."""

    def __init__(self):
        self.said, self.glances, self.enough = [], [], threading.Event()

    def say(self, sentence):
        self.said.append(sentence)

    def glance(self, glance):
        self.glances.append(glance)
        if len(self.glances) >= 2:
            self.enough.set()


def test_the_watch_shows_the_run_and_each_new_event_once():
    heard = Heard()
    with canned_hub() as url:
        watch = Watch(Course(HubClient(url, TOKEN), heard).look, seconds=0.01)
        watch.start()
        assert heard.enough.wait(20.0)
        watch.stop()
    assert heard.glances[0] == Glance(RUN, WORKERS)
    assert [sentence.partition(" ")[2] for sentence in heard.said] == [
        "joined: worker 0",
        "lost: worker 1: its connection broke",
        "by DiLoCo(every=100), through shared memory",
    ]


def test_the_watch_outlives_a_hub_that_is_away():
    heard = Heard()
    with canned_hub() as url:
        pass
    watch = Watch(Course(HubClient(url, TOKEN), heard).look, seconds=0.01)
    watch.start()
    watch.stop()
    assert heard.glances == []


class Told:
    """A client whose hub says one after the other."""

    def __init__(self, *runs):
        self._runs = list(runs)

    def run(self):
        run = self._runs.pop(0)
        if isinstance(run, Exception):
            raise run
        return run


def test_what_a_run_waits_for_is_said_at_once_and_its_beginning_once():
    waiting = [{**RUN, "state": "waiting", "why": f"waiting, at most {left} s more"} for left in (9, 8, 7)]
    heard = Heard()
    beginning = Beginning(Told(*waiting, RUN), heard, seconds=3600.0)
    for _ in range(5):
        beginning.look()
    assert heard.said == ["waiting, at most 9 s more", status_line(RUN)]


def test_while_a_run_has_not_begun_it_is_said_again_what_is_missing_the_hub_too():
    heard = Heard()
    beginning = Beginning(Told(HubUnreachable("no hub"), {**RUN, "state": "waiting", "why": "b"}), heard, 0.0)
    for _ in range(2):
        beginning.look()
    assert heard.said == ["no hub", "b"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (12_345_678, "12.3 MB"),
        (999_999_999, "1 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_bytes_are_told_in_three_digits(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.421, "0.42 s"), (12.34, "12.3 s"), (59.99, "1:00"), (125, "2:05"), (3725, "1:02:05")],
)
def test_times_are_told_as_on_a_clock(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (12288.0, "12,288"), (1234.56, "1,235"), (123.45, "123.5"), (1.23456, "1.235"), (0.0, "0")],
)
def test_numbers_are_told_in_few_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("missing", "twice", "text"),
    [
        (0, 0, "0 missing, 0 twice"),
        (3072, 0, "3,072 not reached before the run ended, 0 twice"),
        (None, None, "– missing, – twice"),
    ],
)
def test_what_a_stopped_run_has_not_come_to_is_not_called_missing(missing, twice, text):
    assert balance({"missing": missing, "twice": twice}) == text


def test_the_loss_stands_for_the_run_or_else_its_first_metric():
    assert headline_metric({"accuracy": 0.5, "loss": 1.0}) == ("loss", 1.0)
    assert headline_metric({"reward": 0.5}) == ("reward", 0.5)
    assert headline_metric({}) == ("loss", None)
