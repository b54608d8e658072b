"""One worker's control connection: a bounded queue out, checked messages in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from manyhands.core.messages import Followed, Hello, Refuse, ToHub, decode_for_hub, encode
from manyhands.errors import WireError

FRAME_BYTES = 16 * 2**20
CLOSING_SECONDS = 30.0
QUEUED = 1024

# Websocket close codes (RFC 6455, section 7.4.1).
NORMAL, BAD_DATA, POLICY, TOO_LARGE = 1000, 1003, 1008, 1009


class Connection:
    """The socket of one incarnation. Sending never waits: messages queue up to `QUEUED`.

    `hello` is its first message, `Followed` where the incarnation is another hub's.
    """

    def __init__(self, websocket: WebSocket, hello: Hello | Followed, queued: int = QUEUED) -> None:
        self.hello = hello
        self.incarnation = hello.incarnation
        self._websocket = websocket
        self._out: asyncio.Queue[bytes | None] = asyncio.Queue(queued)
        self._over = asyncio.Event()
        self._closing = ""

    def send(self, data: bytes) -> bool:
        """False when too many messages wait already: the worker does not read."""
        if self._over.is_set() or self._closing:
            return True
        try:
            self._out.put_nowait(data)
        except asyncio.QueueFull:
            return False
        return True

    def close(self, why: str) -> None:
        """Close once everything sent before has gone out, or `CLOSING_SECONDS` have passed."""
        if self._closing:
            return
        self._closing = why or "closed"
        try:
            self._out.put_nowait(None)
        except asyncio.QueueFull:
            self._over.set()
        else:
            asyncio.get_running_loop().call_later(CLOSING_SECONDS, self._over.set)

    def drop(self) -> None:
        """Close now, whatever still waits to be sent."""
        self._closing = "dropped"
        self._over.set()

    async def carry(self, inbox: Inbox) -> None:
        """Move messages both ways until one side closes; a message that is not one closes it."""
        tasks = [asyncio.create_task(part) for part in (self._read(inbox), self._write(), self._over.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome

    async def _read(self, inbox: Inbox) -> None:
        async for message in incoming(self._websocket):
            if isinstance(message, Hello | Followed):
                raise WireError("it said Hello twice on one connection")
            await inbox.put((self, message))

    async def _write(self) -> None:
        try:
            while (data := await self._out.get()) is not None:
                await self._websocket.send_bytes(data)
            await self._websocket.close(NORMAL, reason_of(self._closing))
            await self._over.wait()  # the peer's answer ends the reading side
        except (WebSocketDisconnect, OSError):
            pass


# What has come in and from where; None: the connection is gone.
Inbox = asyncio.Queue[tuple[Connection, ToHub | None]]


async def incoming(websocket: WebSocket) -> AsyncIterator[ToHub]:
    """Decoded messages until the peer closes. Raises `WireError` for anything else."""
    while True:
        event = await websocket.receive()
        if event["type"] == "websocket.disconnect":
            if event.get("code") == TOO_LARGE:
                raise WireError(f"it sent a message larger than {FRAME_BYTES} bytes")
            return
        data = event.get("bytes")
        if data is None:
            raise WireError("it sent a text frame; control messages are binary")
        try:
            message = decode_for_hub(data)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise WireError(f"it sent {len(data)} bytes that are no control message ({error})") from error
        yield message


async def greeting(websocket: WebSocket, seconds: float) -> Hello | Followed:
    """The first message, which must be `Hello` or `Followed`, and must come in time."""
    try:
        async with asyncio.timeout(seconds):
            async for message in incoming(websocket):
                if isinstance(message, Hello | Followed):
                    return message
                raise WireError(f"its first message was {type(message).__name__}, not Hello")
    except TimeoutError:
        raise WireError(f"it said nothing for {seconds:g} s") from None
    raise WireError("it closed before it said Hello")


async def refuse(websocket: WebSocket, kind: str, why: str) -> None:
    """Tell a worker that just connected why it is not taken, and close."""
    try:
        await websocket.send_bytes(encode(Refuse(kind, why)))
        await websocket.close(POLICY, reason_of(why))
    except (WebSocketDisconnect, OSError):
        pass


def reason_of(why: str) -> str:
    """Cut to the 123 bytes that a close frame has room for."""
    return why.encode()[:120].decode(errors="ignore")
