"""The hub as a process: its address, its end, and what a killed one leaves to the next."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.sync.client import connect

from manyhands._version import __version__
from manyhands.core.messages import (
    Acknowledged,
    Applied,
    Asked,
    Beat,
    Contribution,
    Dataset,
    Declared,
    Finished,
    Hello,
    Leased,
    Opened,
    Ready,
    Span,
    Standing,
    Tensor,
    Version,
    View,
    Welcome,
    decode_for_worker,
    encode,
)
from manyhands.hub.address import listen
from manyhands.hub.process import write_reports

WAIT = 30.0


class HubProcess:
    """`python -m manyhands.hub` on a folder."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "manyhands.hub", "--folder", folder, "--run", "r1", *options],
            env={**os.environ, "MANYHANDS_TOKEN": "secret", **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def address(self) -> dict:
        """hub.json, as soon as this process has written it."""
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError(f"the hub ended: {self.process.stderr.read()}")
            try:
                address = json.loads((self.folder / "hub.json").read_text())
            except FileNotFoundError:
                address = {}
            if address.get("pid") == self.process.pid:
                return address
            time.sleep(0.01)
        raise AssertionError("the hub did not come up")

    def get(self, path: str) -> dict:
        return self.ask(urllib.request.Request(self.address()["url"] + path))

    def post(self, path: str, body: dict) -> dict:
        return self.ask(urllib.request.Request(self.address()["url"] + path, json.dumps(body).encode()))

    def ask(self, request: urllib.request.Request) -> dict:
        request.add_header("Authorization", "Bearer secret")
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return json.load(answer)

    @contextmanager
    def worker(self, name: str = "0", **fields: object):
        url = self.address()["url"].replace("http", "ws") + "/control"
        with connect(url, additional_headers={"Authorization": "Bearer secret"}) as socket:
            socket.send(encode(Hello("r1", f"inc-{name}", name, 1, "127.0.0.1", 1, __version__, **fields)))
            yield socket

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait; exit code and what it said."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=WAIT)
        return self.process.returncode, said


@pytest.fixture
def start(tmp_path):
    """Starts hubs on the test's folder; whichever still runs at the end is killed."""
    started = []

    def start(*options: str, folder: Path = tmp_path / "run", **environment: str) -> HubProcess:
        started.append(HubProcess(folder, *options, **environment))
        return started[-1]

    yield start
    for hub in started:
        if hub.process.poll() is None:
            hub.process.kill()
        hub.process.communicate()


def hear(socket):
    return decode_for_worker(socket.recv(timeout=WAIT))


def test_hub_json_tells_where_it_is_to_its_owner_only(start, tmp_path):
    hub = start()
    address = hub.address()
    assert address == {
        "url": f"http://127.0.0.1:{address['port']}",
        "pid": hub.process.pid,
        "run": "r1",
        "token": "secret",
        "port": address["port"],
    }
    assert stat.S_IMODE((tmp_path / "run" / "hub.json").stat().st_mode) == 0o600
    assert hub.get("/healthz") == {"ok": True, "run": "r1"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_exit_code_0_and_no_fault_for_the_next(start, number):
    hub = start()
    with hub.worker() as socket:
        assert isinstance(hear(socket), Welcome)
        code, said = hub.end(number)
    assert code == 0, said
    assert "Traceback" not in said
    assert start().get("/api/run")["faults"] == 0


def test_a_killed_hub_comes_back_on_its_port_with_its_journal_and_notes_the_fault(start):
    first = start()
    before = first.address()
    with first.worker() as socket:
        assert isinstance(hear(socket), Welcome)
        socket.send(encode(Beat(read=5)))
        events = first.get("/api/events")
        started = first.get("/api/run")["started"]
        first.end(signal.SIGKILL)
        second = start("--port", "0")
        assert second.address()["port"] == before["port"]
    with second.worker() as socket:
        assert isinstance(hear(socket), Welcome)
        run = second.get("/api/run")
        assert run["started"] == started
        assert run["faults"] == 1
        after = second.get("/api/events")
        assert after[: len(events)] == events
        assert any(event["kind"] == "hub" and "died" in event["text"] for event in after[len(events) :])


def test_a_run_that_is_taken_up_goes_by_the_options_given_now(start):
    first = start("--expected", "2", "--lease", "30")
    first.address()
    first.end()
    second = start("--expected", "3", "--lease", "5")
    with second.worker() as socket:
        welcome = expect(socket, Welcome)
    assert (welcome.expected, welcome.lease) == (3, 5.0)


def test_a_second_hub_on_the_same_folder_is_refused_with_the_remedy(start):
    start().address()
    code, said = start().wait()
    assert code == 1
    assert "another hub serves the run folder" in said
    assert "Traceback" not in said


def test_a_port_in_use_is_one_sentence_and_exit_code_1(start):
    with listen("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        code, said = start("--port", str(port)).wait()
    assert code == 1
    assert said == (
        f"hub: port {port} on 127.0.0.1 is in use: end the process that listens there, "
        "or choose another port with --port (0 takes a free one)\n"
    )


def test_no_token_is_one_sentence_and_exit_code_1(start):
    code, said = start(MANYHANDS_TOKEN="").wait()
    assert code == 1
    assert said == "hub: MANYHANDS_TOKEN is not set: give hub and workers the same secret in it\n"


def test_the_folder_of_another_run_is_one_sentence_and_exit_code_1(start):
    first = start()
    first.address()
    first.end()
    code, said = start("--run", "r2").wait()
    assert code == 1
    assert "holds the run r1, not r2: choose another --folder" in said
    assert said.count("\n") == 1


def test_a_wrong_option_ends_with_usage_before_anything_is_made(start, tmp_path):
    code, said = start("--lease", "-3").wait()
    assert code == 2
    assert "--lease: invalid positive float value: '-3'" in said
    assert not (tmp_path / "run").exists()


def test_a_stop_over_rest_ends_a_hub_that_waits_for_the_end(start):
    hub = start("--until-finished")
    with hub.worker() as socket:
        hear(socket)
        assert hub.post("/api/stop", {"why": "enough"})["why"] == "enough"
        while type(hear(socket)).__name__ != "Finished":
            pass
    code, said = hub.wait()
    assert code == 0, said


DATASET = Dataset(0, 100, 10, 1, "shuffled", 7)
READY = Ready((Tensor("w", (3,), "float32"),), "DiLoCo()")


def expect(socket, kind):
    """The next message of this kind; others are passed over."""
    while not isinstance(message := hear(socket), kind):
        pass
    return message


def admit(*sockets) -> View:
    """Everybody partitions and shares; the view that opens."""
    for socket in sockets:
        expect(socket, Welcome)
        socket.send(encode(Declared(DATASET)))
        socket.send(encode(READY))
    return [expect(socket, Opened).view for socket in sockets][-1]


def lease(socket, samples: int) -> tuple[Span, ...]:
    socket.send(encode(Asked(0, 0, samples)))
    return expect(socket, Leased).spans


def contribution(incarnation: str, spans: tuple[Span, ...]) -> Contribution:
    count = float(sum(len(span) for span in spans))
    return Contribution(incarnation, count, spans, {"loss": (2.0 * count, count)})


def test_a_run_of_two_workers_is_told_over_rest_and_ends_the_hub_with_its_reports(start, tmp_path):
    hub = start("--until-finished", "--expected", "2")
    with hub.worker("0") as first, hub.worker("1") as second:
        view = admit(first, second)
        assert [member.name for member in view.members] == ["0", "1"]
        spans = lease(first, 100)
        (ledger,) = hub.get("/api/ledger")["datasets"]
        held = sum(len(span) for span in spans)
        assert ledger["leased"] == held
        assert ledger["leases"] == [
            {"name": "0", "spans": [[span.start, span.stop] for span in spans], "samples": held}
        ]

        one = Version(1, view.number)
        parts = (contribution("inc-0", spans), Contribution("inc-1", 0.0, rejected="not a number"))
        second.send(encode(Applied(one, "same")))
        first.send(encode(Beat(sent=11, received=7, read=held)))
        first.send(encode(Applied(one, "same", parts)))
        assert expect(first, Acknowledged).number == 1

        run = hub.get("/api/run")
        assert (run["state"], run["version"], run["view"]) == (
            "training",
            {"number": 1, "view": view.number},
            {"number": view.number, "size": 2},
        )
        assert run["metrics"] == {"loss": 2.0}
        assert run["workers"] == {"live": 2, "contributing": 1}
        assert run["bytes"] == {"sent": 11, "received": 7}
        assert run["tensors"] == {"count": 1, "elements": 3, "bytes": 12}
        assert run["faults"] == 1
        assert run["samples"]["committed"] == held
        assert run["samples"]["missing"] == 100 - held
        assert run["samples"]["twice"] == 0
        assert run["time_left"] > 0
        assert run["datasets"][0]["order"] == "shuffled"
        (row,) = hub.get("/api/rounds?last=5")
        assert row["contributors"] == {"0": held}
        assert row["rejected"] == {"1": "not a number"}
        zero, one = hub.get("/api/workers")
        assert (zero["name"], zero["rank"], zero["state"], zero["committed"]) == ("0", 0, "member", held)
        assert (one["name"], one["rank"], one["committed"]) == ("1", 1, 0.0)

        assert hub.post("/api/stop", {"why": "enough"}) == {"stopping": True, "why": "enough"}
        assert expect(first, Finished).why == expect(second, Finished).why == "enough"
        assert hub.get("/api/run")["state"] == "finished"
        first.send(
            encode(Beat(sent=23, received=19, read=held))
        )  # the last one, from who was told of the end
    code, said = hub.wait()
    assert code == 0, said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["run"], summary["bytes"]) == ("r1", {"sent": 23, "received": 19})
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


def test_a_run_that_loses_its_last_version_ends_with_exit_code_1_and_the_sentence(start):
    hub = start("--until-finished")
    with hub.worker() as socket:
        view = admit(socket)
        socket.send(encode(Applied(Version(1, view.number), "d", (contribution("inc-0", ()),))))
        expect(socket, Acknowledged)
    code, said = hub.wait()
    assert code == 1
    assert "version 1" in said
    assert "Traceback" not in said


def test_members_of_a_killed_hub_report_and_the_next_hub_goes_on_from_their_version(start):
    first = start()
    with first.worker() as socket:
        view = admit(socket)
        socket.send(
            encode(Applied(Version(1, view.number), "d", (contribution("inc-0", lease(socket, 10)),)))
        )
        expect(socket, Acknowledged)
        first.end(signal.SIGKILL)
    second = start()
    missed = Applied(Version(2, view.number), "e", (contribution("inc-0", ()),))
    standing = Standing(view.number, missed.version, 3, (), (missed,), view)
    with second.worker(standing=standing, datasets=(DATASET,), ready=READY) as socket:
        assert expect(socket, Welcome).resumed
        assert expect(socket, Acknowledged).number == 2
        assert [row["version"] for row in second.get("/api/rounds")] == [1, 2]
        assert second.get("/api/run")["samples"]["committed"] == 10


def test_a_hub_that_died_after_the_end_tells_the_end_to_who_still_asks(start):
    first = start()
    with first.worker() as socket:
        admit(socket)
        first.post("/api/stop", {})
        assert expect(socket, Finished).why == "stopped on request"
        first.end(signal.SIGKILL)
    second = start("--until-finished")
    with second.worker() as socket:
        assert expect(socket, Finished).why == "stopped on request"
    code, said = second.wait()
    assert code == 0, said


def test_a_report_that_cannot_be_drawn_costs_a_log_line_and_nothing_else(tmp_path, monkeypatch, caplog):
    def broken(_):
        raise OSError("no space left")

    monkeypatch.setattr("manyhands.hub.summary.write_summary", broken)
    write_reports(tmp_path)
    assert f"the report of {tmp_path} cannot be written: no space left" in caplog.text


@contextmanager
def full_disk(hub: HubProcess):
    """No file of this process can grow: the kernel answers as a full quota does."""
    hard = resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE)[1]
    size = max(path.stat().st_size for path in hub.folder.iterdir())
    resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE, (size, hard))
    yield
    if hub.process.poll() is None:
        resource.prlimit(hub.process.pid, resource.RLIMIT_FSIZE, (hard, hard))


def unhealthy(hub: HubProcess) -> str:
    """Wait until /healthz says 503, and why."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        try:
            hub.get("/healthz")
        except urllib.error.HTTPError as error:
            return json.load(error)["why"]
        time.sleep(0.02)
    raise AssertionError("the hub stays healthy")


def test_a_disk_that_is_full_for_a_while_loses_nothing(start):
    hub = start()
    with hub.worker("0") as first:
        hear(first)
        with full_disk(hub):
            why = unhealthy(hub)
            assert "hub.db cannot be written" in why
            with hub.worker("1") as second, pytest.raises(TimeoutError):
                second.recv(timeout=0.3)
        with hub.worker("2") as third:
            assert isinstance(hear(third), Welcome)
        assert hub.get("/healthz")["ok"]
        joined = [event["who"] for event in hub.get("/api/events") if event["kind"] == "joined"]
        assert joined == ["0", "1", "2"]
    code, said = hub.end()
    assert code == 0
    assert "free some space" in said


def test_a_disk_that_stays_full_ends_the_hub_with_the_sentence_and_exit_code_1(start):
    hub = start("--journal-deadline", "0.6")
    with hub.worker() as socket:
        hear(socket)
        with full_disk(hub):
            code, said = hub.wait()
    assert code == 1
    assert "hub.db cannot be written" in said.splitlines()[-1]
    assert "free some space" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert start().get("/healthz")["ok"]


def test_an_unknown_token_over_rest_is_401_with_the_remedy(start):
    hub = start()
    request = urllib.request.Request(hub.address()["url"] + "/api/run", headers={"Authorization": "Bearer x"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=WAIT)
    assert caught.value.code == 401
    assert "MANYHANDS_TOKEN" in json.load(caught.value)["error"]
