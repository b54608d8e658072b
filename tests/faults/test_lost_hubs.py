"""Another hub takes the run over from what its workers know: the first is gone, or keeps some of them."""

import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from invariants import assert_I2_same_bits
from training import EPOCHS, SAMPLES, SCRIPT, SECONDS, Process, gather

from manyhands.cli.client import HubClient
from manyhands.engines.folder import read_hub_file
from manyhands.errors import ManyhandsError
from manyhands.hub.address import listen

pytestmark = pytest.mark.faults

TOTAL = SAMPLES * EPOCHS


class Hosts:
    """Workers that join one of two hubs, each process started here by its own command."""

    def __init__(self, folder: Path, strategy: str, lease: float = 6.0) -> None:
        self.lease = lease
        self.folder, self.script = folder, folder / "train.py"
        self.script.write_text(SCRIPT.replace("STRATEGY", strategy))
        self.ports = [_free_port(), _free_port()]
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        self.client = HubClient(self.urls[1], "secret")
        self.environment = {
            **os.environ,
            "MANYHANDS_TOKEN": "secret",
            "FAULTS": "",
            "FAULT_FOLDER": str(folder),
            "HOSTS": "1",
            "PACE": "0.06",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]]),
        }
        self.processes: list[Process] = []

    def start(self, *arguments: str) -> Process:
        command = [sys.executable, "-m", "manyhands", *arguments]
        said = self.folder / f"said by process {len(self.processes)}"
        self.processes.append(Process(command, self.environment, said))
        return self.processes[-1]

    def hub(self, which: int, *more: str) -> Process:
        folder = self.folder / f"hub{which}"
        port = str(self.ports[which])
        return self.start(
            *("hub", "--port", port, "--expected", "3", "--folder", str(folder)),
            *("--lease", str(self.lease), *more),
        )

    def join(self, name: str, *urls: str) -> Process:
        return self.start("join", "--hub", ",".join(urls), "--name", name, str(self.script))

    def committed(self, which: int) -> int:
        try:
            return int(HubClient(self.urls[which], "secret").run()["samples"]["committed"] or 0)
        except ManyhandsError:
            return 0

    def members(self, which: int) -> int:
        try:
            return int(HubClient(self.urls[which], "secret").run()["workers"]["contributing"])
        except ManyhandsError:
            return 0

    def until(self, what: str, condition) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"I5: {what} has not come"
            time.sleep(0.05)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


class Relay:
    """A way to a port that can be closed for good, with all that goes over it."""

    def __init__(self, port: int) -> None:
        self._port, self._sockets = port, list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [near, far]
                for pair in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._carry, args=pair))
                    self._threads[-1].start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()


def _free_port() -> int:
    with listen("127.0.0.1", 0) as listener:
        return int(listener.getsockname()[1])


def _assert_all_learned_once(hosts: Hosts, workers: list[Process]) -> None:
    """The workers come to their end with the same bits, and every sample is in one version (I2, I3)."""
    said = [worker.said() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    lines = [
        (found[0], found[1]) for text in said for found in re.findall(r"^\[(.*?)\] (.*)$", text, re.MULTILINE)
    ]
    ran = gather(hosts.folder / "hub1", lines, None, [], [])
    assert_I2_same_bits(ran)
    positions: Counter[tuple[int, int]] = Counter()
    newest: dict[int, int] = {}
    for number, view in ran.spans():
        newest[number] = max(newest.get(number, 0), view)
    for (number, view), spans in ran.spans().items():
        if newest[number] == view:
            for span in spans:
                positions.update((span.epoch, at) for at in range(span.start, span.stop))
    assert len(positions) == TOTAL, "I3: samples are missing"
    assert set(positions.values()) == {1}, "I3: samples are in two versions"


@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.DiLoCo(4)"])
def test_another_hub_with_an_empty_folder_takes_over_and_the_older_one_has_no_say_any_more(
    tmp_path: Path, strategy: str
) -> None:
    hosts = Hosts(tmp_path, strategy)
    try:
        first = hosts.hub(0)
        hosts.until("the first hub", lambda: (tmp_path / "hub0" / "hub.json").exists())
        run = read_hub_file(tmp_path / "hub0").run
        workers = [hosts.join(name, *hosts.urls) for name in "012"]
        hosts.until("600 samples", lambda: hosts.committed(0) >= 600)
        first.send_signal(signal.SIGSTOP)  # it lives on, and will wake up
        shutil.copytree(tmp_path / "hub0", tmp_path / "copy")
        hosts.hub(1, "--take-over", run)
        hosts.until("the other hub to go on", lambda: hosts.committed(1) >= 1500)
        hosts.until("all of them to come", lambda: hosts.members(1) == 3)
        first.send_signal(signal.SIGCONT)
        _assert_it_has_given_way(first)  # workers tell it, once a lease, as long as there are any
        (tmp_path / "go").touch()
        _assert_all_learned_once(hosts, workers)
    finally:
        hosts.close()


def test_a_pool_that_is_divided_between_two_hubs_becomes_one_and_the_older_hub_ends(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, "mh.LocalSGD(4)", lease=2.0)
    first = hosts.hub(0)
    relay = Relay(hosts.ports[0])
    try:
        hosts.until("the first hub", lambda: (tmp_path / "hub0" / "hub.json").exists())
        run = read_hub_file(tmp_path / "hub0").run
        workers = [hosts.join(name, hosts.urls[0], hosts.urls[1]) for name in "01"]
        workers.append(hosts.join("2", relay.url, hosts.urls[1]))
        hosts.until("600 samples", lambda: hosts.committed(0) >= 600)
        hosts.hub(1, "--take-over", run)
        hosts.until("the other hub", lambda: (tmp_path / "hub1" / "hub.json").exists())
        relay.close()
        hosts.until("all of them to come", lambda: hosts.members(1) == 3)
        _assert_it_has_given_way(first)
        (tmp_path / "go").touch()
        _assert_all_learned_once(hosts, workers)
    finally:
        relay.close()
        hosts.close()


def _assert_it_has_given_way(hub: Process) -> None:
    said = hub.said()
    assert hub.returncode == 1
    assert "a newer hub serves run" in said
