from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import psutil
import pytest
from puppets import Pool, threads_of_exchanges


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Makes exchanges and puppets, closes them, and sees to it that no thread or descriptor is left."""
    process = psutil.Process()
    gc.collect()  # descriptors of what other tests let go of are not to be closed meanwhile
    before = process.num_fds()
    pool = Pool()
    try:
        yield pool
    finally:
        pool.close()
    assert threads_of_exchanges() == []
    assert process.num_fds() == before


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "manyhands.exchange")
