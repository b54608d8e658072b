from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _one_thread_per_worker() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
