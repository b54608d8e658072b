"""Processes that a test starts: marked, waited for, and none of them left over."""

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest


def marked(mark: str) -> list[psutil.Process]:
    """The processes that live and carry this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits for something that another process does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.01)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Marks every process that the test starts, and checks that none is left after it."""
    mark = secrets.token_hex(8)
    monkeypatch.setenv("MARK", mark)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    yield mark
    left = marked(mark)
    for process in left:
        process.kill()
    assert left == [], "processes are left over"
