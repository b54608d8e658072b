"""What all connections of one exchange share: who may be connected, the fence, and the lock over both."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, current_thread
from typing import Protocol

from manyhands.exchange.memory import Loan
from manyhands.exchange.wire import Header

log = logging.getLogger("manyhands.exchange")

Address = tuple[str, int]


class Sink(Protocol):
    """The owner of an exchange, as the exchange sees it. Called on the exchange's threads.

    None of the three is called with a lock of the exchange held; `place` may block, and then holds up
    this one peer's messages to us and nothing else. An owner that closes the exchange or takes a peer
    out of the members must let go of whoever it holds in `place`.
    """

    def place(self, peer: str, header: Header, loan: Loan | None = None) -> memoryview | None:
        """Where the payload goes: a writable, contiguous buffer of exactly `header.length` bytes.

        None: read it and throw it away. WireError: close the connection, with this sentence.
        What is in the buffer before `arrived` is not checked yet. A payload that is lent is copied there,
        or stays where it is if the answer is `loan.payload`: then whoever reads it sees to it that the
        loan stands.
        """

    def arrived(self, peer: str, header: Header, payload: memoryview | None) -> Callable[[], None] | None:
        """The payload is complete and its checksum right: the bytes of what `place` gave, or None.

        Returns what is left to do when the slice counts as handed over (`Exchange.quiesce`), if anything.
        """

    def lost(self, peer: str, why: str) -> None:
        """A connection to or from this member broke, or it cannot be dialled; once for each break.

        What was queued for it, or on its way from it, may be gone. It is dialled again by itself.
        """

    def failed(self, error: Exception) -> None:
        """A thread of the exchange, or the owner on one, failed as it never should: there is no going on."""


@dataclass
class Deadlines:
    """Seconds. `step`: of a handshake. `pending`: until our owner names an authenticated peer.
    `stall`: how long a peer may fall silent in the middle of a message, or its host at all; it holds for
    connections that are made later."""

    step: float = 5.0
    pending: float = 10.0
    stall: float = 30.0


@dataclass(eq=False)
class Roster:
    """Read and written under `changed` only, and notified after every change someone may wait for.

    `fenced` is the view and base of the oldest round of which slices are still taken in.
    """

    changed: Condition = field(default_factory=Condition)
    members: Mapping[str, Address] = field(default_factory=dict)
    fenced: tuple[int, int] = (0, 0)
    closing: bool = False
    sent: int = 0
    received: int = 0
    received_bulk: int = 0


def tell_lost(sink: Sink, peer: str, why: str) -> None:
    """Calls `Sink.lost`; what the owner raises there is logged, and ends no thread of the exchange."""
    try:
        sink.lost(peer, why)
    except Exception:
        log.exception("the owner failed when it was told: %s", why)


def tell_failed(sink: Sink, error: Exception) -> None:
    """Calls `Sink.failed` in an `except` block, and logs the traceback."""
    log.exception("%s ends: %s: %s", current_thread().name, type(error).__name__, error)
    try:
        sink.failed(error)
    except Exception:
        log.exception("the owner failed when it was told")


class Stopped(Exception):
    """The owner no longer wants this connection."""


class HungUp(Exception):
    """The other side closed the connection between two messages."""


def hang_up(connection: socket.socket) -> None:
    """Ends every wait on the connection, in whatever thread; closing it is left to its own thread.

    Call it under the roster's lock, and close under it too: the number of a closed socket is soon
    another socket's.
    """
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
