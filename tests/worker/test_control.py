"""The connection to the hub."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
from stand_in_hub import PATIENCE, StandInHub

from manyhands.core.messages import Beat

CHILD = """
import os, signal, sys, time
from manyhands.core.messages import Beat, Hello
from manyhands.worker.control import Control

hello = Hello("run", "child", "child", os.getpid(), "127.0.0.1", 1, "0")
control = Control(sys.argv[1], "a token", lambda: hello, Beat, lambda message: None)
control.start(time.monotonic() + 10.0)
sys.stdin.readline()
child = os.fork()
if child == 0:
    signal.pause()
print(child, flush=True)
signal.pause()
"""


def test_the_hub_hears_at_once_of_a_killed_worker_even_if_a_process_forked_from_it_lives_on(
    hub: StandInHub,
) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", CHILD, hub.url], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    orphan = 0
    try:
        hub.wait_for(Beat, "child")
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write("fork\n")
        worker.stdin.flush()
        orphan = int(worker.stdout.readline())
        worker.send_signal(signal.SIGKILL)
        hub.wait_for_end("child")
        assert psutil.pid_exists(orphan)
    finally:
        if orphan:
            os.kill(orphan, signal.SIGKILL)
        worker.kill()
        worker.wait(PATIENCE)
        for stream in (worker.stdin, worker.stdout):
            assert stream is not None
            stream.close()
