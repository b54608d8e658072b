"""The hub's one loop: what workers say goes through the coordinator, into the journal, and back out.

Order is the whole point. Everything that arrives is handled in one place, one after the other; what
the coordinator decides is in the journal before any worker hears of it. Several arrivals may share
one transaction; then none of their answers leaves before it is on disk.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from starlette.websockets import WebSocket, WebSocketDisconnect

from manyhands.core.coordinator import ENDED, Coordinator
from manyhands.core.decisions import (
    Close,
    Compared,
    Connected,
    Disconnected,
    End,
    Event,
    Note,
    Received,
    Send,
    Stopped,
    Ticked,
    VersionRecord,
    lasts,
)
from manyhands.core.decisions import Journal as Write
from manyhands.core.membership import LIVE, Totals
from manyhands.core.messages import STRANGER, Followed, Hello, Serving, ToHub, ToWorker, encode
from manyhands.errors import JournalError, ProtocolError, WireError
from manyhands.hub.connections import BAD_DATA, QUEUED, Connection, Inbox, greeting, reason_of, refuse
from manyhands.hub.journal import Journal, Record, SampleRow

log = logging.getLogger("manyhands.hub")

TICK_SECONDS = 0.05
SAMPLE_SECONDS = 1.0
DEAF_SECONDS = 1.0
BATCH = 256
UNKNOWN_TOKEN = (
    "the hub does not know this token: set MANYHANDS_TOKEN to the one in hub.json of the run's folder"
)


@dataclass(frozen=True)
class Limits:
    """Seconds between attempts to write the journal and in all; until Hello; messages that may wait."""

    retry: float = 0.5
    deadline: float = 60.0
    greeting: float = 10.0
    queued: int = QUEUED


class Hub:
    """The coordinator with a journal behind it and workers in front of it.

    `trouble` is why the journal cannot be written just now, or empty; `ended` is how the run ended,
    and `over` is set once every worker has been told; `contributing` counts the members that put
    something into the newest version; `open` counts the connections, `greeted` all there ever were.
    """

    def __init__(
        self, coordinator: Coordinator, journal: Journal, token: str, limits: Limits | None = None
    ) -> None:
        self.coordinator = coordinator
        self.journal = journal
        self.limits = limits or Limits()
        self.connections: dict[str, Connection] = {}
        self.trouble = ""
        self.ended: End | None = None
        self.over = asyncio.Event()
        self.open = self.greeted = 0
        newest = journal.versions(last=1)
        self.contributing = sum(samples > 0 for samples in newest[0].contributors.values()) if newest else 0
        self._token = token.encode()
        self._inbox: Inbox = asyncio.Queue(4 * BATCH)
        self._records: list[tuple[float, Record]] = []
        self._outbound: list[tuple[Connection, ToWorker | Serving | str]] = []
        self._sampled, self._counted = 0.0, Totals()
        self._zero = time.time() - time.monotonic()
        self._stop = ""
        if coordinator.state in ENDED:  # an earlier hub saw the end of this run
            self.ended = End(coordinator.state != "failed" and not coordinator.superseded, coordinator.why)
            self.over.set()

    def _now(self) -> float:
        """Seconds since the epoch as this hub began; a step of the machine's clock ends no lease."""
        return self._zero + time.monotonic()

    def knows(self, authorization: str | None) -> bool:
        """Does this `Authorization` header carry the run's token?"""
        scheme, _, token = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token)

    def stop(self, why: str) -> None:
        """End the run: with the next tick the workers are told that it is over."""
        self._stop = why

    def live(self) -> int:
        """Workers that are there, members or not."""
        return sum(worker.state in LIVE for worker in self.coordinator.workers.values())

    # --- workers come and go ---------------------------------------------------------------------

    async def control(self, websocket: WebSocket) -> None:
        """The websocket endpoint: one worker from its Hello to its end."""
        await websocket.accept()
        peer = f"{websocket.client.host}:{websocket.client.port}" if websocket.client else "a worker"
        if not self.knows(websocket.headers.get("authorization")):
            log.warning("refused %s: its token is missing or wrong", peer)
            await refuse(websocket, STRANGER, UNKNOWN_TOKEN)
            return
        try:
            hello = await greeting(websocket, self.limits.greeting)
            peer = f"worker {hello.name} at {peer}"
            await self._carry(Connection(websocket, hello, self.limits.queued))
        except WireError as error:
            log.warning("closed the connection of %s: %s", peer, error)
            with suppress(RuntimeError, WebSocketDisconnect, OSError):  # it may be closed already
                await websocket.close(BAD_DATA, reason_of(str(error)))

    async def _carry(self, connection: Connection) -> None:
        self.open += 1
        self.greeted += 1
        try:
            await self._inbox.put((connection, connection.hello))
            await connection.carry(self._inbox)
        finally:
            self.open -= 1
            await self._inbox.put((connection, None))

    # --- the loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Handle what arrives until cancelled. Raises `JournalError` when the journal stays unwritable."""
        due = time.monotonic() + TICK_SECONDS
        while True:
            for connection, message in await self._arrivals(due):
                self._arrived(connection, message)
            late = time.monotonic() - due
            if late > DEAF_SECONDS:
                # This hub was deaf (suspended, or waiting for its disk): it first hears what was said
                # meanwhile, and only then judges who was silent.
                due += late + DEAF_SECONDS
            elif late >= 0:
                due += late + TICK_SECONDS
                self._handle(Ticked())
                self._sample()
                if self._stop and not self.ended:
                    self._handle(Stopped(self._stop))
            if self._records or self._outbound or (self.ended and not self.over.is_set()):
                if self.ended and not self.over.is_set():
                    self._records += self.last_row()
                await self._write()
                self._send()

    async def _arrivals(self, due: float) -> list[tuple[Connection, ToHub | None]]:
        """What has come, as soon as there is something; nothing when it is time for the next tick."""
        arrivals = []
        if self._inbox.empty():
            try:
                async with asyncio.timeout(due - time.monotonic()):
                    arrivals.append(await self._inbox.get())
            except TimeoutError:
                return []
        while len(arrivals) < BATCH and not self._inbox.empty():
            arrivals.append(self._inbox.get_nowait())
        return arrivals

    def _arrived(self, connection: Connection, message: ToHub | None) -> None:
        """One message, or None when the connection is gone; silence for a connection that was replaced."""
        incarnation = connection.incarnation
        current = self.connections.get(incarnation)
        if isinstance(message, Followed):
            self._handle(Compared(message), connection)
            self._outbound += [
                (connection, Serving(self.coordinator.serves(message.run))),
                (connection, "compared"),
            ]
        elif isinstance(message, Hello):
            if current is not None:
                current.close("a newer connection of this worker took its place")
            self.connections[incarnation] = connection
            self._handle(Connected(message), connection)
        elif current is not connection:
            return
        elif message is None:
            del self.connections[incarnation]
            self._handle(Disconnected(incarnation))
        else:
            self._handle(Received(incarnation, message), connection)

    def _handle(self, event: Event, connection: Connection | None = None) -> None:
        now = self._now()
        try:
            actions = self.coordinator.handle(event, now)
        except ProtocolError as error:
            if connection is None:
                raise
            self._impossible(connection, error)
            return
        for action in actions:
            if isinstance(action, Write):
                self._records.append((now, action.record))
                if isinstance(action.record, VersionRecord):
                    self.contributing = sum(
                        c.weight > 0 and not c.rejected for c in action.record.contributions
                    )
            elif isinstance(action, Note):
                self.note(now, action)
            elif isinstance(action, Send):
                if receiver := self.connections.get(action.incarnation):
                    self._outbound.append((receiver, action.message))
            elif isinstance(action, Close):
                if closed := self.connections.pop(action.incarnation, None):
                    self._outbound.append((closed, action.why))
            else:
                self.ended = self.ended or action

    def _impossible(self, connection: Connection, error: ProtocolError) -> None:
        """What a worker said cannot be: its connection ends, the others go on."""
        name = connection.hello.name
        self.note(self._now(), Note("hub", name, f"closed the connection of worker {name}: {error}"))
        self._outbound.append((connection, str(error)))
        if self.connections.get(connection.incarnation) is connection:
            del self.connections[connection.incarnation]
            self._handle(Disconnected(connection.incarnation))

    def note(self, at: float, note: Note) -> None:
        """Log it now, and write it with the next transaction."""
        self._records.append((at, note))
        log.info("%s: %s", note.kind, note.text)

    def _sample(self) -> None:
        """A row for the picture of the run, about once a second while somebody is there."""
        if self._now() >= self._sampled + SAMPLE_SECONDS and self.live():
            self._records.append(self._row())

    def _row(self) -> tuple[float, SampleRow]:
        self._sampled = now = self._now()
        self._counted = all_ = self.coordinator.membership.totals
        return now, SampleRow(now, self.live(), self.contributing, all_.sent, all_.received, all_.read)

    def last_row(self) -> list[tuple[float, SampleRow]]:
        """What the samples lack of the counters: the last beats came after the last second was full."""
        return [self._row()] if self.coordinator.membership.totals != self._counted else []

    async def _write(self) -> None:
        """Put everything decided since the last time into the journal, trying until the deadline."""
        state = {"coordinator": self.coordinator.snapshot()}
        lasting = any(lasts(item) for _, item in self._outbound)
        if self.ended and not self.over.is_set():
            state["ended"] = str(self._now()).encode()
        began = time.monotonic()
        while True:
            try:
                self.journal.write(self._records, lasting=lasting, **state)
                break
            except JournalError as error:
                waited = time.monotonic() - began
                if waited >= self.limits.deadline:
                    raise JournalError(f"{error} (tried for {waited:.0f} s)") from error
                if not self.trouble:
                    log.error(
                        "%s; trying again for %g s, workers are told nothing", error, self.limits.deadline
                    )
                self.trouble = str(error)
            await asyncio.sleep(self.limits.retry)
        self._records.clear()
        if self.trouble:
            waited = time.monotonic() - began
            self.note(
                self._now(), Note("hub", "", f"for {waited:.1f} s the hub could not write: {self.trouble}")
            )
            self.trouble = ""

    def _send(self) -> None:
        message: object = None
        data = b""
        for connection, item in self._outbound:
            if isinstance(item, str):
                connection.close(item)
                continue
            if item is not message:  # the same order goes to many
                message, data = item, encode(item)
            if not connection.send(data):
                name = connection.hello.name
                waiting = self.limits.queued
                why = f"worker {name} does not read what it is told ({waiting} messages wait): disconnected"
                self.note(self._now(), Note("suspected", name, why))
                connection.drop()
        self._outbound.clear()
        if self.ended:
            self.over.set()
