"""The data plane: one checked TCP connection for each ordered pair of members."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from threading import Thread, current_thread
from typing import Final

from manyhands.errors import MachineError, PortInUse, WireError
from manyhands.exchange import kernel, wire
from manyhands.exchange.handshake import Identity
from manyhands.exchange.incoming import Incoming
from manyhands.exchange.line import FAR, Line
from manyhands.exchange.memory import Memory, lends
from manyhands.exchange.outgoing import Message, Outgoing
from manyhands.exchange.roster import Address, Deadlines, Roster, Sink, hang_up, tell_failed
from manyhands.exchange.streams import Streams
from manyhands.exchange.wire import Header, Kind

log = logging.getLogger("manyhands.exchange")

MOST_STRANGERS: Final = 256
"""How many connections may be at the start of the handshake; what comes beyond them is closed unheard."""


class Exchange:
    """Carries messages between this incarnation and the members its owner names.

    Listens on `host`:`port` (0: any free port) from the start. `send` writes on a connection that
    this side dials, `sink` is called for what comes in on those that the others dial; on each, messages
    keep their order. Whoever does not know the token, or belongs to another run, gets no further than
    the handshake. `limits` are the largest payloads by kind, in bytes.

    Every `deadline` is a value of `time.monotonic()`. Raises PortInUse or MachineError if it cannot listen.
    """

    def __init__(
        self,
        run: str,
        token: str,
        incarnation: str,
        sink: Sink,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Mapping[Kind, int] = wire.LIMITS,
        deadlines: Deadlines | None = None,
        streams: int = 1,
    ) -> None:
        self._streams = streams
        self.deadlines = deadlines or Deadlines()
        self._us = Identity(wire.run_hash(run), token, incarnation)
        self._sink = sink
        self._limits = {**wire.LIMITS, **limits}
        self._roster = Roster()
        self._outgoing: dict[str, Streams] = {}
        self._incoming: set[Incoming] = set()
        self._threads: list[Thread] = []
        self._memory: Memory | None = None
        self._line = Line()
        self._listener = _listen(host, port)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self._start(Thread(target=self._accept, name="mh-listen", daemon=True))

    def serve(self, run: str) -> None:
        """It is this run after all; before there are any members."""
        with self._roster.changed:
            self._us = self._us._replace(run=wire.run_hash(run))

    def lend(self, memory: Memory) -> None:
        """Slices in this memory stay there for members that can read it; before there are any members."""
        self._memory, self._us = memory, self._us._replace(offer=memory.offer)

    @property
    def neighbours(self) -> int | None:
        """How many members read our memory; None before each of them has been connected once."""
        with self._roster.changed:
            read = [link.is_read for link in self._outgoing.values()]
        return None if None in read else sum(map(bool, read))

    def measure_line(self) -> float:
        """Bytes/s at which this member sends to other hosts, while it does; 0 where it is not known.

        Opens further connections to members far away, as long as they make it faster.
        """
        with self._roster.changed:
            links: dict[Hashable, kernel.Progress] = {
                (peer, number): link.progress
                for peer, streams in self._outgoing.items()
                for number, link in enumerate(streams.links)
            }
            rate = self._line.measure(links)
            for streams in self._outgoing.values():
                if streams.links[0].progress.round_trip >= FAR:
                    streams.grow(self._line.streams)
            return rate

    @property
    def streams(self) -> int:
        """The most connections to one member."""
        with self._roster.changed:
            return max((len(streams.links) for streams in self._outgoing.values()), default=0)

    @property
    def sent_bytes(self) -> int:
        """Handed to the kernel or lent since the start, headers included."""
        return self._roster.sent

    @property
    def received_bytes(self) -> int:
        """Taken in since the start, headers and what is lent included: it grows while a message comes in."""
        with self._roster.changed:
            return self._roster.received + sum(connection.coming for connection in self._incoming)

    @property
    def received_bulk_bytes(self) -> int:
        """Received of slices and states, not of messages."""
        with self._roster.changed:
            coming = sum(connection.coming for connection in self._incoming if connection.bulky)
            return self._roster.received_bulk + coming

    def members(self, peers: Mapping[str, Address]) -> None:
        """Sets exactly who may be connected, by incarnation, with the address of its exchange.

        New ones are dialled in the background. Connections from and to all others are closed before
        this returns; what was queued for them is dropped, and `lost` is not called for them. A call of
        `place` or `arrived` that has begun goes on.
        """
        wanted = {peer: address for peer, address in peers.items() if peer != self._us.incarnation}
        with self._roster.changed:
            if self._roster.closing:
                return
            self._roster.members = wanted
            for peer, link in list(self._outgoing.items()):
                if wanted.get(peer) != link.address:
                    self._outgoing.pop(peer).stop()
            for connection in self._incoming:
                if connection.admitted and connection.peer not in wanted:
                    connection.stop()
            for peer, address in wanted.items():
                if peer not in self._outgoing:
                    opens = partial(self._open, peer, address)
                    self._outgoing[peer] = Streams(address, opens, self._streams)
            self._roster.changed.notify_all()

    def _open(self, peer: str, address: Address, stream: int) -> Outgoing:
        link = Outgoing(peer, address, self._us, self.deadlines, self._roster, self._sink, stream)
        self._start(link.thread)
        return link

    def send(self, peer: str, header: Header, payload: bytes | bytearray | memoryview = b"") -> bool:
        """Queues a message and returns at once; False if `peer` is no member just now.

        `header.length` and `header.checksum` are taken from the payload, which must stay untouched
        until it is sent (`drain`) or dropped (`fence`, `retire`, `cancel`, `lost`). Raises WireError for
        a header that cannot be written and for a payload over the limit.
        """
        return bool(self._queue([peer], header, payload, None))

    def send_all(
        self, peers: Iterable[str], header: Header, payload: bytes | bytearray | memoryview = b""
    ) -> int:
        """Queues one message for several members as `send` does, hashed once; how many it is queued for.

        Hashed before this returns, if for anybody: best called by whoever has just written the payload.
        """
        peers = tuple(peers)
        with self._roster.changed:
            read = all(self._outgoing[peer].is_read for peer in peers if peer in self._outgoing)
        checksum = None if read else wire.payload_hash(payload)
        return self._queue(peers, header, payload, checksum)

    def _queue(
        self,
        peers: Iterable[str],
        header: Header,
        payload: bytes | bytearray | memoryview,
        checksum: int | None,
    ) -> int:
        view = memoryview(payload)
        content = view.cast("B") if view.nbytes else memoryview(b"")
        if content.nbytes > self._limits[header.kind]:
            raise WireError(
                f"{header.kind.name} of {content.nbytes} bytes cannot be sent: the limit is "
                f"{self._limits[header.kind]}; send it in pieces"
            )
        body = wire.pack_body(header, self._us.run, content.nbytes)
        message = Message(header, body, checksum, content, self._lies_at(header, content))
        with self._roster.changed:
            links = [self._outgoing[peer] for peer in peers if peer in self._outgoing]
            for link in links:
                link.put(message)
        return len(links)

    def _lies_at(self, header: Header, content: memoryview) -> int:
        if self._memory is None or not lends(header):
            return 0
        where = self._memory.where(content)
        return 0 if where is None else where + 1

    def carries(self, peer: str, header: Header) -> bool:
        """A message with this header is queued for `peer`, or on its way into the kernel."""
        with self._roster.changed:
            return peer in self._outgoing and self._outgoing[peer].carries(header)

    @property
    def unreachable(self) -> tuple[str, ...]:
        """The peers to which there is no connection just now, after one broke or could not be made."""
        with self._roster.changed:
            return tuple(peer for peer, link in self._outgoing.items() if link.unreachable)

    def cancel(self, peer: str) -> None:
        """Drops what is queued for `peer`; a message that is half sent is sent to its end."""
        with self._roster.changed:
            if peer in self._outgoing:
                self._outgoing[peer].drop()
                self._roster.changed.notify_all()

    def drain(self, deadline: float) -> bool:
        """Waits until everything queued has been handed to the kernel or dropped; False if time is up."""
        return self._wait(lambda: all(link.idle for link in self._outgoing.values()), deadline)

    def fence(self, view: int, base: int = 0) -> None:
        """Keeps out slices of rounds before the one on `base` in `view`.

        `place` is not asked for them any more, and what is half read is thrown away. What is queued of
        older views, slices and states, is dropped; others may still need what is queued of this one.
        Messages go out and come in whatever their view.
        """
        with self._roster.changed:
            self._roster.fenced = max((view, base), self._roster.fenced)
            for link in self._outgoing.values():
                link.fence(self._roster.fenced[0])
            self._roster.changed.notify_all()

    def retire(self, useless: Callable[[Header], bool], deadline: float) -> bool:
        """Gives the memory of useless slices back to their owner; False if time is up.

        Those queued are dropped. One that is half sent is sent to its end, from a copy of what is left:
        that takes the time of one call of the kernel, `kernel.TICK` at most.
        """

        def retired() -> bool:
            done = [link.retire(useless) for link in self._outgoing.values()]  # each is asked
            return all(done)

        return self._wait(retired, deadline)

    def quiesce(self, view: int, base: int, deadline: float) -> bool:
        """Waits until no thread fills, or hands over, a buffer for a slice of a round before this one.

        False if time is up. To be called when such slices are fenced off, without a lock that `Sink.arrived`
        needs; there only for the round of the slice that has arrived, or an older one.
        """
        this = view, base
        return self._wait(
            lambda: not any(reader.reading and reader.reading < this for reader in self._incoming), deadline
        )

    def close(self, seconds: float = 5.0) -> None:
        """Closes every connection and waits for the threads; says so if one will not end in time."""
        deadline = time.monotonic() + seconds
        with self._roster.changed:
            self._roster.closing = True
            self._roster.members = {}
            hang_up(self._listener)
            for link in self._outgoing.values():
                link.stop()
            for connection in self._incoming:
                connection.stop()
            self._outgoing = {}
            self._roster.changed.notify_all()
            threads = [thread for thread in self._threads if thread is not current_thread()]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = [thread.name for thread in threads if thread.is_alive()]
        if left:
            log.error("the exchange is closed, but %s did not end in %g s", ", ".join(left), seconds)

    def _wait(self, condition: Callable[[], bool], deadline: float) -> bool:
        with self._roster.changed:
            return self._roster.changed.wait_for(condition, max(0.0, deadline - time.monotonic()))

    def _start(self, thread: Thread) -> None:
        with self._roster.changed:
            self._threads = [*(old for old in self._threads if old.is_alive()), thread]
            thread.start()

    def _accept(self) -> None:
        try:
            self._accept_all()
        except Exception as error:
            tell_failed(self._sink, error)

    def _accept_all(self) -> None:
        with self._listener as listener:
            while not self._roster.closing:
                try:
                    connection, address = listener.accept()
                except OSError as error:
                    if not self._roster.closing:
                        log.warning("a connection could not be accepted: %s", error)
                        self._wait(lambda: self._roster.closing, time.monotonic() + 0.1)
                    continue
                self._receive(connection, f"{address[0]}:{address[1]}")

    def _receive(self, connection: socket.socket, address: str) -> None:
        reader = Incoming(
            connection,
            address,
            self._us,
            self.deadlines,
            self._limits,
            self._roster,
            self._incoming,
            self._sink,
        )
        with self._roster.changed:
            strangers = sum(not other.peer for other in self._incoming)
            if self._roster.closing or strangers >= MOST_STRANGERS:
                log.warning(
                    "closed a connection from %s unheard: %d are in the handshake", address, strangers
                )
                connection.close()
                return
            self._incoming.add(reader)
            self._start(reader.thread)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = kernel.keep_from_forks(socket.socket(family, socket.SOCK_STREAM))
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} of {host} is in use; choose another, or 0 for any free one"
            ) from error
        raise MachineError(
            f"cannot listen on {host}:{port}: {error}; choose an address of this machine"
        ) from error
    return listener
