"""For all tests: what a test starts, it ends."""

import threading
import time
from collections.abc import Iterator

import psutil
import pytest

SECONDS = 10.0  # for what has been told to end, and is about to


def _running() -> dict[str, set[object]]:
    """Child processes, threads and listening ports of this process."""
    me = psutil.Process()
    return {
        "processes": {(child.pid, child.name()) for child in _children(me)},
        "threads": {(thread.ident, thread.name) for thread in threading.enumerate()},
        "listening ports": {
            connection.laddr.port
            for connection in me.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        },
    }


def _children(me: psutil.Process) -> Iterator[psutil.Process]:
    for child in me.children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                yield child
        except psutil.NoSuchProcess:
            continue


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No process, no thread and no listening port of a test outlives it."""
    before = _running()
    yield
    deadline = time.monotonic() + SECONDS
    while left := {kind: found for kind, now in _running().items() if (found := now - before[kind])}:
        assert time.monotonic() < deadline, f"left running: {left}"
        time.sleep(0.01)
