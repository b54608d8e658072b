"""The connection to one member: dialled, written to in order, and dialled again when it breaks."""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from threading import Thread
from typing import Final, NamedTuple

from manyhands.errors import WireError
from manyhands.exchange import handshake, kernel, wire
from manyhands.exchange.roster import (
    Address,
    Deadlines,
    HungUp,
    Roster,
    Sink,
    Stopped,
    hang_up,
    tell_failed,
    tell_lost,
)
from manyhands.exchange.wire import Header, Kind

log = logging.getLogger("manyhands.exchange")

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
"""Seconds between two attempts to dial: doubled from the one to the other."""

AT_ONCE_BYTES: Final = 4096
"""Payloads up to so many bytes are sent by whoever queues them, if the line is idle."""

_LOOK_AROUND: Final = 10_000  # milliseconds for which a thread with nothing to send sleeps at most
_NO_SIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)


class Message(NamedTuple):
    """What is queued. `body`: the header's bytes before the checksum, which may not be known yet.

    `lies_at`: where peers that read our memory find the payload, as headers tell it; 0 for one that is sent.
    """

    header: Header
    body: bytes
    checksum: int | None
    payload: memoryview
    lies_at: int = 0


class Outgoing:
    """Everything that goes to `peer`, on a thread of its own.

    `is_read`: the peer reads our memory; None before it has been connected.

    `put`, `drop`, `retire`, `stop`, `idle` and `carries` return at once and are used under the roster's lock.
    """

    def __init__(
        self,
        peer: str,
        address: Address,
        us: handshake.Identity,
        deadlines: Deadlines,
        roster: Roster,
        sink: Sink,
        stream: int = 0,
    ) -> None:
        self.peer = peer
        self._stream = stream
        self.address = address
        self._us = us
        self._deadlines = deadlines
        self._roster = roster
        self._sink = sink
        self.is_read: bool | None = None
        self._queue: deque[Message] = deque()
        self._sending: Header | None = None
        self._sending_bytes = 0
        self._borrowed = False  # what is being sent lies in its owner's memory
        self._called_in = False
        self._asleep = False
        self._stopped = False
        self._known_lost = self._stands = False
        self._connection: socket.socket | None = None
        self._woken, self._wake = os.pipe()
        self.thread = Thread(target=self._run, name=f"mh-send-{peer}", daemon=True)

    @property
    def stands(self) -> bool:
        """The peer has answered, and the connection has not broken since."""
        return self._stands

    @property
    def unreachable(self) -> bool:
        """The connection broke, or could not be made, and does not stand again yet."""
        return self._known_lost

    @property
    def idle(self) -> bool:
        """Everything queued has been handed to the kernel, or dropped."""
        return not self._queue and self._sending is None

    @property
    def waiting_bytes(self) -> int:
        """Of what is queued, and of what is being sent."""
        return self._sending_bytes + sum(message.payload.nbytes for message in self._queue)

    @property
    def progress(self) -> kernel.Progress:
        """Of what is sent to another host over the connection that stands."""
        if self._connection is None or self.is_read is not False:
            return kernel.NO_PROGRESS
        try:
            return kernel.progress(self._connection)
        except OSError:
            return kernel.NO_PROGRESS

    def carries(self, header: Header) -> bool:
        """This very message is queued, or being sent."""
        return self._sending == header or any(message.header == header for message in self._queue)

    def put(self, message: Message) -> None:
        if not self._sent_at_once(message):
            self._queue.insert(self._place_for(message), message)
            self._rouse()

    def _place_for(self, message: Message) -> int:
        """Parts of a state come last: who trains waits for the end of one at most."""
        place = len(self._queue)
        if message.header.kind is not Kind.SNAPSHOT:
            while place and self._queue[place - 1].header.kind is Kind.SNAPSHOT:
                place -= 1
        return place

    def _sent_at_once(self, message: Message) -> bool:
        """A few bytes for a line that stands idle need no other thread to be woken."""
        if not self._asleep or self._connection is None:
            return False
        lies_at = self._lies_at(message)
        if not lies_at and message.payload.nbytes > AT_ONCE_BYTES:
            return False
        data = b"".join(_sealed(message, lies_at))
        try:
            count = self._connection.send(data, socket.MSG_DONTWAIT | _NO_SIGNAL)
        except OSError:
            return False  # its own thread finds out what is wrong, or waits until there is room
        if count < len(data):
            hang_up(self._connection)
        self._roster.sent += count + (message.payload.nbytes if lies_at else 0)
        return True

    def drop(self) -> None:
        """Drops what is queued."""
        self._drop(lambda _: True)

    def fence(self, view: int) -> None:
        """Drops slices and states of older views. A message may be what ends the older one for others."""
        self._drop(lambda header: header.kind is not Kind.MESSAGE and header.view < view)

    def retire(self, useless: Callable[[Header], bool]) -> bool:
        """Drops what is useless, and takes the rest of one that is half sent out of its owner's memory.

        True when that has been done.
        """
        self._drop(useless)
        called_in = self._borrowed and self._sending is not None and useless(self._sending)
        self._called_in = self._called_in or called_in
        return not called_in

    def _drop(self, useless: Callable[[Header], bool]) -> None:
        kept = [message for message in self._queue if not useless(message.header)]
        self._queue.clear()
        self._queue.extend(kept)

    def stop(self) -> None:
        self._stopped = True
        self.drop()
        if self._connection is not None:
            hang_up(self._connection)
        self._rouse()

    def _rouse(self) -> None:
        if self._asleep:
            self._asleep = False
            os.write(self._wake, b"\0")

    def _run(self) -> None:
        pause = FIRST_PAUSE
        try:
            while True:
                lasted = self._dial_and_serve()
                pause = FIRST_PAUSE if lasted > LONGEST_PAUSE else pause
                self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        except Stopped:
            pass
        except Exception as error:
            tell_failed(self._sink, error)
        finally:
            with self._roster.changed:
                os.close(self._wake)
                os.close(self._woken)

    def _dial_and_serve(self) -> float:
        """One connection, from dialling to its end; returns for how many seconds it was up."""
        up: float | None = None
        try:
            connection = self._dial()
            up = time.monotonic()
            self._stands = True
            level = logging.INFO if self._known_lost else logging.DEBUG
            log.log(level, "connected to %s at %s:%d", self.peer, *self.address)
            self._known_lost = False
            self._serve(connection)
        except HungUp:
            self._report(logging.INFO, "lost the connection to", "the other side closed it", up)
        except (WireError, OSError) as error:
            self._report(
                logging.WARNING, "cannot reach" if up is None else "lost the connection to", str(error), up
            )
        finally:
            self._let_go()
        return 0.0 if up is None else time.monotonic() - up

    def _dial(self) -> socket.socket:
        try:
            found = socket.getaddrinfo(*self.address, type=socket.SOCK_STREAM)
        except (TypeError, ValueError, OverflowError) as error:  # of a member's own making
            raise WireError(f"this is no address: {error}") from error
        family, kind, protocol, _, address = found[0]
        raw = kernel.keep_from_forks(socket.socket(family, kind, protocol))
        self._hold(raw)
        raw.settimeout(self._deadlines.step)
        raw.connect(address)
        connection = handshake.secured(raw, dialled=True)
        self._hold(connection)
        self.is_read = handshake.dial(
            connection, self._us, self.peer, self._deadlines.step, self._deadlines.pending, self._stream
        )
        kernel.prepare(connection, self._deadlines.stall)
        return connection

    def _serve(self, connection: socket.socket) -> None:
        """Sends what is queued until the connection breaks; never returns."""
        while True:
            message = self._next()
            if message is None:
                self._sleep(connection)
            else:
                lies_at = self._lies_at(message)
                if lies_at:
                    with self._roster.changed:
                        self._roster.sent += message.payload.nbytes
                self._send(connection, *_sealed(message, lies_at))

    def _lies_at(self, message: Message) -> int:
        return message.lies_at if self.is_read else 0

    def _next(self) -> Message | None:
        """Takes the oldest message; the one before it is out, and its payload is the owner's again."""
        with self._roster.changed:
            self._check_wanted()
            self._sending, self._sending_bytes = None, 0
            self._give_back()
            if self._queue:
                message = self._queue.popleft()
                self._sending, self._sending_bytes = message.header, message.payload.nbytes
                self._borrowed = True
                return message
            self._asleep = True
            self._roster.changed.notify_all()
            return None

    def _send(self, connection: socket.socket, head: bytes, payload: memoryview) -> None:
        pieces = [memoryview(head), payload]
        heard = time.monotonic()
        while pieces:
            if self._called_in:
                pieces = [memoryview(b"".join(pieces))]
                with self._roster.changed:
                    self._give_back()
            try:
                # Takes all of it as a rule: the socket blocks until its time limit comes.
                count = connection.sendmsg(pieces, (), _NO_SIGNAL)
            except BlockingIOError:
                self._check_silence(connection, heard)
                continue
            heard = time.monotonic()
            with self._roster.changed:
                self._roster.sent += count
            while pieces and count >= pieces[0].nbytes:
                count -= pieces.pop(0).nbytes
            if pieces:
                pieces[0] = pieces[0][count:]

    def _give_back(self) -> None:
        """The owner may write to its memory again. Under the lock."""
        self._borrowed = False
        if self._called_in:
            self._called_in = False
            self._roster.changed.notify_all()

    def _check_silence(self, connection: socket.socket, heard: float) -> None:
        with self._roster.changed:
            self._check_wanted()
        silence = min(kernel.unanswered(connection), time.monotonic() - heard)
        if silence > self._deadlines.stall:
            raise WireError(f"its host has acknowledged nothing for {silence:.0f} s")

    def _sleep(self, connection: socket.socket) -> None:
        """Waits for something to send, and notices when the other side closes meanwhile."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        poll.register(connection, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(_LOOK_AROUND)]
        with self._roster.changed:
            self._check_wanted()
            if not self._asleep:
                os.read(self._woken, 1)
            self._asleep = False
        if connection.fileno() in ready:
            error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            raise OSError(error, os.strerror(error)) if error else HungUp

    def _rest(self, seconds: float) -> None:
        with self._roster.changed:
            self._roster.changed.wait_for(lambda: self._stopped, seconds)
            self._check_wanted()

    def _hold(self, connection: socket.socket) -> None:
        with self._roster.changed:
            self._connection = connection
            self._check_wanted()

    def _let_go(self) -> None:
        with self._roster.changed:
            if self._connection is not None:
                self._connection.close()
            self._connection, self._stands = None, False

    def _report(self, level: int, what: str, why: str, up: float | None) -> None:
        """Drops what was queued, and tells the owner once until a connection stands again.

        Messages stay where there was no connection yet, since when `up` says: nothing has been lost.
        """
        with self._roster.changed:
            self._check_wanted()
            self._drop(lambda header: up is not None or header.kind is not Kind.MESSAGE)
            self._sending, self._sending_bytes = None, 0
            self._give_back()
            known, self._known_lost = self._known_lost, True
            self._roster.changed.notify_all()
        sentence = f"{what} {self.peer} at {self.address[0]}:{self.address[1]}: {why}"
        log.log(logging.DEBUG if known else level, "%s; dialling again", sentence)
        if not known:
            tell_lost(self._sink, self.peer, sentence)

    def _check_wanted(self) -> None:
        if self._stopped:
            raise Stopped


def _sealed(message: Message, lies_at: int) -> tuple[bytes, memoryview]:
    """The header, and the payload unless the peer reads it where it lies."""
    if lies_at:
        return wire.seal(message.body, 0, lies_at), memoryview(b"")
    # Hashed here, just before the kernel copies it: the copy then reads from the cache.
    checksum = wire.payload_hash(message.payload) if message.checksum is None else message.checksum
    return wire.seal(message.body, checksum), message.payload
