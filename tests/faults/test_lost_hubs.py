"""The hub and its folder are gone for good: another one takes the run over from what its workers know."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from invariants import assert_I2_same_bits
from training import EPOCHS, SAMPLES, SCRIPT, SECONDS, gather

from manyhands.cli.client import HubClient
from manyhands.engines.folder import read_hub_file
from manyhands.errors import ManyhandsError
from manyhands.hub.address import listen

pytestmark = pytest.mark.faults

TOTAL = SAMPLES * EPOCHS


class Hosts:
    """Workers that join one of two hubs, each process started here by its own command."""

    def __init__(self, folder: Path, strategy: str) -> None:
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
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]]),
        }
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "manyhands", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def hub(self, which: int, *more: str) -> subprocess.Popen[str]:
        folder = self.folder / f"hub{which}"
        port = str(self.ports[which])
        return self.start(
            "hub", "--port", port, "--expected", "3", "--folder", str(folder), "--lease", "6", *more
        )

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
            process.communicate()


def _free_port() -> int:
    with listen("127.0.0.1", 0) as socket:
        return int(socket.getsockname()[1])


@pytest.mark.parametrize("strategy", ["mh.EveryStep()", "mh.DiLoCo(4)"])
def test_another_hub_with_an_empty_folder_takes_over_and_the_older_one_has_no_say_any_more(
    tmp_path: Path, strategy: str
) -> None:
    hosts = Hosts(tmp_path, strategy)
    try:
        first = hosts.hub(0)
        hosts.until("the first hub", lambda: (tmp_path / "hub0" / "hub.json").exists())
        run = read_hub_file(tmp_path / "hub0").run
        workers = [
            hosts.start("join", "--hub", ",".join(hosts.urls), "--name", name, str(hosts.script))
            for name in "012"
        ]
        hosts.until("600 samples", lambda: hosts.committed(0) >= 600)
        first.send_signal(signal.SIGSTOP)  # it lives on, and will wake up
        shutil.copytree(tmp_path / "hub0", tmp_path / "copy")
        hosts.hub(1, "--take-over", run)
        hosts.until("the other hub to go on", lambda: hosts.committed(1) >= 1500)
        hosts.until("all of them to come", lambda: hosts.members(1) == 3)
        (tmp_path / "go").touch()
        first.send_signal(signal.SIGCONT)
        said = [worker.communicate(timeout=SECONDS)[0] for worker in workers]
    finally:
        hosts.close()
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    lines = [
        (found[0], found[1]) for text in said for found in re.findall(r"^\[(.*?)\] (.*)$", text, re.MULTILINE)
    ]
    ran = gather(tmp_path / "hub1", lines, None, [], [])
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
