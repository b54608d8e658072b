"""Owners, exchanges and peers driven by hand, for the tests of the data plane."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from manyhands.exchange import handshake, wire
from manyhands.exchange.memory import Loan
from manyhands.exchange.roster import Deadlines
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import Header, Kind

RUN, TOKEN, PATIENCE = "run-1", "a token", 10.0


def _fresh(header: Header) -> memoryview:
    return memoryview(bytearray(header.length))


class Recorder:
    """An owner that takes everything into fresh buffers and keeps a record; `gate` holds it in `place`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.asked: list[Header] = []
        self.taken: list[tuple[str, Header, bytes | None]] = []
        self.losses: list[tuple[str, str]] = []
        self.failures: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()
        self.uses_loans = False
        self.where: Callable[[Header], memoryview | None] = _fresh
        self.then: Callable[[Header], None] = lambda _: None
        self.left_to_do: Callable[[], None] | None = None

    def place(self, _peer: str, header: Header, loan: Loan | None = None) -> memoryview | None:
        with self.changed:
            self.asked.append(header)
            self.changed.notify_all()
        assert self.gate.wait(PATIENCE)
        where = self.where(header)
        return loan.payload if loan is not None and self.uses_loans else where

    def arrived(self, peer: str, header: Header, payload: memoryview | None) -> Callable[[], None] | None:
        self.then(header)
        with self.changed:
            self.taken.append((peer, header, None if payload is None else bytes(payload)))
            self.changed.notify_all()
        return self.left_to_do

    def lost(self, peer: str, why: str) -> None:
        with self.changed:
            self.losses.append((peer, why))
            self.changed.notify_all()

    def failed(self, error: Exception) -> None:
        with self.changed:
            self.failures.append(error)
            self.changed.notify_all()

    def wait(self, condition: Callable[[Recorder], bool], seconds: float = PATIENCE) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: condition(self), seconds)

    def wait_for_messages(self, count: int) -> list[tuple[str, Header, bytes | None]]:
        assert self.wait(lambda self: len(self.taken) >= count), f"{len(self.taken)} of {count} came"
        return self.taken[:count]

    def wait_for_loss(self, words: str) -> str:
        def told() -> list[str]:
            return [why for _, why in self.losses if words in why]

        assert self.wait(lambda _: bool(told())), f"{words!r} not in {self.losses}"
        return told()[0]


class Puppet:
    """A peer driven by hand: proves itself like a member, then says whatever the test wants."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()
        self.connections: list[socket.socket] = []

    def connect(self, exchange: Exchange, peer: str, offer: bytes = b"") -> socket.socket:
        connection = self.connect_raw(exchange)
        us = handshake.Identity(wire.run_hash(RUN), TOKEN, self.name, offer)
        handshake.dial(connection, us, peer, PATIENCE, PATIENCE)
        return connection

    def connect_raw(self, exchange: Exchange) -> socket.socket:
        connection = socket.create_connection((exchange.host, exchange.port), PATIENCE)
        self.connections.append(connection)
        return connection

    def answer(self, token: str = TOKEN) -> socket.socket:
        """The first connection that somebody dials, with the handshake done."""
        connection, _ = self.listener.accept()
        self.connections.append(connection)
        handshake.answer(connection, handshake.Identity(wire.run_hash(RUN), token, self.name), PATIENCE)
        handshake.admit(connection, PATIENCE, reads=False)
        return connection

    def close(self) -> None:
        for connection in [self.listener, *self.connections]:
            connection.close()


class Pool:
    def __init__(self) -> None:
        self.opened: list[tuple[Exchange, Recorder]] = []
        self.puppets: list[Puppet] = []

    def exchange(
        self, name: str, owner: Recorder, run: str = RUN, token: str = TOKEN, **options: object
    ) -> Exchange:
        options.setdefault("deadlines", Deadlines(step=2.0, pending=5.0, stall=PATIENCE))
        exchange = Exchange(run, token, name, owner, **options)  # type: ignore[arg-type]
        self.opened.append((exchange, owner))
        return exchange

    def pair(self) -> tuple[Exchange, Recorder, Exchange, Recorder]:
        at_a, at_b = Recorder(), Recorder()
        a, b = self.exchange("a", at_a), self.exchange("b", at_b)
        introduce(a=a, b=b)
        return a, at_a, b, at_b

    def puppet(self, name: str) -> Puppet:
        self.puppets.append(Puppet(name))
        return self.puppets[-1]

    def close(self) -> None:
        for _, owner in self.opened:
            owner.gate.set()
        for exchange, _ in self.opened:
            exchange.close(PATIENCE)
        for puppet in self.puppets:
            puppet.close()


def introduce(**exchanges: Exchange) -> None:
    """Names all of them to each of them."""
    addresses = {name: (exchange.host, exchange.port) for name, exchange in exchanges.items()}
    for exchange in exchanges.values():
        exchange.members(addresses)


def threads_of_exchanges() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("mh-"))


def until(seconds: float = PATIENCE) -> float:
    return time.monotonic() + seconds


def eventually(condition: Callable[[], bool]) -> None:
    deadline = until()
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def message(number: int, view: int = 1) -> Header:
    return Header(Kind.MESSAGE, view, base=number)


def slice_of(view: int, length: int = 0, checksum: int = 0) -> Header:
    return Header(Kind.CONTRIBUTION, view, length=length, checksum=checksum)


def on_the_wire(header: Header) -> bytes:
    return wire.pack(header, wire.run_hash(RUN))


def whole(view: int, payload: bytes) -> bytes:
    return on_the_wire(slice_of(view, len(payload), wire.payload_hash(payload))) + payload


def with_puppet(pool: Pool, **deadlines: float) -> tuple[Exchange, Recorder, Puppet]:
    """An exchange "a" that knows the puppet "p" as a member."""
    owner, puppet = Recorder(), pool.puppet("p")
    exchange = pool.exchange("a", owner, deadlines=Deadlines(**{"stall": PATIENCE, **deadlines}))
    exchange.members({"p": puppet.address})
    return exchange, owner, puppet


def assert_still_works(a: Exchange, at_b: Recorder) -> None:
    before = len(at_b.taken)
    assert a.send("b", message(77))
    assert at_b.wait_for_messages(before + 1)[-1][1].base == 77


def assert_works_again(a: Exchange, at_b: Recorder) -> None:
    """Messages reach b again; those sent before the link stood may have been dropped."""
    deadline = until()
    count = len(at_b.taken)
    while not at_b.wait(lambda self: len(self.taken) > count, 0.1):
        assert time.monotonic() < deadline
        a.send("b", message(1))


def closed_by_the_other_side(connection: socket.socket) -> bool:
    connection.settimeout(PATIENCE)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True
