from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from stand_in_hub import StandInHub


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    """A hub to speak with; afterwards no thread of a worker or of this hub may be left."""
    before = set(threading.enumerate())
    hub = StandInHub()
    try:
        yield hub
    finally:
        hub.close()
    for thread in set(threading.enumerate()) - before:  # those of its connections end by themselves
        if not thread.name.startswith("mh-"):
            thread.join(10.0)
    assert set(threading.enumerate()) <= before
