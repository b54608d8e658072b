"""Workers in threads of this process with a real hub: all is real but that they are no processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from manyhands.core.coordinator import Coordinator
from manyhands.hub.address import listen
from manyhands.hub.journal import Journal, VersionRow
from manyhands.hub.process import Server
from manyhands.hub.server import Hub
from manyhands.worker.pool import Pool
from manyhands.worker.session import Session
from manyhands.worker.settings import Settings

Result = TypeVar("Result")
DEADLINE = 60.0
TOKEN = "a token"


class PoolWithHub:
    """`run` has so many workers do the same script; `versions` is what came of it, as the journal has it.

    They are on one `machine`, or each on one of its own.
    """

    def __init__(self, folder: Path, size: int, machine: str = "") -> None:
        self.folder, self.size, self.machine = folder, size, machine

    def run(self, script: Callable[[Pool, int], Result]) -> list[Result]:
        """What `script(pool, number)` returns for each worker."""
        with hub_of(self.folder, self.size) as url, ThreadPoolExecutor(self.size) as threads:
            work = [threads.submit(work_of, url, number, self.machine, script) for number in range(self.size)]
            return [each.result(DEADLINE) for each in work]

    @property
    def versions(self) -> list[VersionRow]:
        with Journal(self.folder / "hub.db", readonly=True) as journal:
            return journal.versions()


def work_of(url: str, number: int, machine: str, script: Callable[[Pool, int], Result]) -> Result:
    session = Session(Settings(hub=url, token=TOKEN, name=str(number), machine=machine))
    pool = Pool(session)
    try:
        return script(pool, number)
    finally:
        pool.leave()


@contextmanager
def hub_of(folder: Path, size: int) -> Iterator[str]:
    """A hub on a thread and a free port; its URL."""
    with listen("127.0.0.1", 0) as listener:
        up, end = threading.Event(), threading.Event()

        async def serve() -> None:
            with Journal(folder / "hub.db") as journal:
                hub = Hub(Coordinator("run", size, 10.0), journal, TOKEN)
                server = Server(hub, listener, up.set)
                loop, serving = asyncio.create_task(hub.run()), asyncio.create_task(server.until_stopped())
                await asyncio.to_thread(end.wait)
                loop.cancel()
                await asyncio.wait([loop])
                server.stop()
                await asyncio.wait([serving])

        thread = threading.Thread(target=asyncio.run, args=[serve()], name="hub")
        thread.start()
        try:
            assert up.wait(DEADLINE)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            end.set()
            thread.join(DEADLINE)
            assert not thread.is_alive()
