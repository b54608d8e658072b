"""A hub on a real socket with a coordinator that the test scripts, and workers that speak to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from websockets.asyncio.client import ClientConnection, connect

from manyhands.core.coordinator import Coordinator
from manyhands.core.decisions import Action, Event, Ticked
from manyhands.core.messages import Hello, ToWorker, decode_for_worker, encode
from manyhands.hub.address import listen
from manyhands.hub.journal import Journal
from manyhands.hub.process import Server
from manyhands.hub.server import Hub, Limits

TOKEN = "a secret"
WAIT = 20.0  # seconds after which a test gives up


class Scripted(Coordinator):
    """Keeps every event but ticks in `seen` and answers it with whatever `answer` returns."""

    def __init__(self, answer: Callable[[Event], list[Action]] = lambda _: []) -> None:
        super().__init__("run", expected=2)
        self.answer = answer
        self.seen: list[Event] = []
        self.ticks = 0
        self.blob = b"snapshot"
        self.now = 0.0

    def handle(self, event: Event, now: float) -> list[Action]:
        self.now = now
        if isinstance(event, Ticked):
            self.ticks += 1
        else:
            self.seen.append(event)
        return self.answer(event)

    def snapshot(self) -> bytes:
        return self.blob


class Worker:
    """A worker's end of the control connection."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def say(self, *messages: object) -> None:
        for message in messages:
            await self.socket.send(encode(message))

    async def hear(self) -> ToWorker:
        async with asyncio.timeout(WAIT):
            data = await self.socket.recv()
        assert isinstance(data, bytes)
        return decode_for_worker(data)

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait for the hub to close; its code and reason."""
        async with asyncio.timeout(WAIT):
            await self.socket.wait_closed()
        return self.socket.close_code, self.socket.close_reason


class Running:
    """A hub that serves, and how to reach it."""

    def __init__(self, hub: Hub, port: int, loop: asyncio.Task[None]) -> None:
        self.hub = hub
        self.port = port
        self.loop = loop

    @asynccontextmanager
    async def socket(self, token: str | None = TOKEN) -> AsyncIterator[Worker]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with connect(
            f"ws://127.0.0.1:{self.port}/control", additional_headers=headers, max_size=None, close_timeout=1
        ) as socket:
            yield Worker(socket)

    @asynccontextmanager
    async def worker(self, incarnation: str = "inc-a", name: str = "0") -> AsyncIterator[Worker]:
        async with self.socket() as worker:
            await worker.say(hello(incarnation, name))
            yield worker

    async def get(self, path: str, token: str | None = TOKEN) -> httpx.Response:
        return await self.ask("GET", path, token)

    async def ask(
        self, method: str, path: str, token: str | None = TOKEN, **options: object
    ) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(timeout=WAIT) as client:
            url = f"http://127.0.0.1:{self.port}{path}"
            return await client.request(method, url, headers=headers, **options)  # type: ignore[arg-type]


def hello(incarnation: str = "inc-a", name: str = "0") -> Hello:
    return Hello("run", incarnation, name, 1, "127.0.0.1", 1, "0")


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds; a test fails when it does not come to hold."""
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(
    folder: Path, coordinator: Coordinator, limits: Limits | None = None
) -> AsyncIterator[Running]:
    """A hub on a free port for as long as the block lasts."""
    with Journal(folder / "hub.db") as journal, listen("127.0.0.1", 0) as listener:
        hub = Hub(coordinator, journal, TOKEN, limits)
        up = asyncio.Event()
        server = Server(hub, listener, up.set)
        loop = asyncio.create_task(hub.run())
        serve = asyncio.create_task(server.until_stopped())
        try:
            await up.wait()
            yield Running(hub, listener.getsockname()[1], loop)
        finally:
            loop.cancel()
            await asyncio.wait([loop])
            server.stop()
            await asyncio.wait([serve])
