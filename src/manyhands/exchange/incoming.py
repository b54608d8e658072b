"""A connection that another member dialled: proved, admitted, and read straight into the owner's buffers."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from threading import Thread
from typing import Final

import numpy as np
import xxhash

from manyhands.errors import WireError
from manyhands.exchange import handshake, kernel, wire
from manyhands.exchange.memory import Loan, Neighbour
from manyhands.exchange.roster import (
    Deadlines,
    HungUp,
    Roster,
    Sink,
    Stopped,
    hang_up,
    tell_failed,
    tell_lost,
)
from manyhands.exchange.wire import HEADER_BYTES, SLICES, Header, Kind

log = logging.getLogger("manyhands.exchange")

CHUNK: Final = 4 * wire.MIB
"""Read and hashed in one piece each, which in a round is the whole slice.

Both give up the GIL, and to get it back costs more than hashing from the nearest cache saves: averaging
100 MB over 2 members takes 72, 62, 51 and 49 ms in chunks of 64 KiB, 256 KiB, 1 MiB and 4 MiB, and 44 ms
with no checksum at all; over 4 members 194, 187, 162 and 173 ms, and 139 ms.
"""


class Incoming:
    """Reads one accepted connection on a thread of its own, from the handshake to its end.

    `peer` is empty until the other side has proved who it is; `reading` are the view and base of the slice
    whose buffer is being filled or handed over, None between slices. They, and `others` (every connection
    of this exchange that is not at its end), change under the roster's lock only. `coming` are the bytes
    that have come of the message that is being read, and `bulky` says that it is a slice or a state;
    both are written on this thread alone, without the lock, for they change with every read.
    """

    def __init__(
        self,
        connection: socket.socket,
        address: str,
        us: handshake.Identity,
        deadlines: Deadlines,
        limits: Mapping[Kind, int],
        roster: Roster,
        others: set[Incoming],
        sink: Sink,
    ) -> None:
        self.peer = ""
        self._stream = 0
        self.admitted = False
        self.reading: tuple[int, int] | None = None
        self._connection = kernel.keep_from_forks(connection)
        self._address = address
        self._us = us
        self._deadlines = deadlines
        self._limits = limits
        self._roster = roster
        self._others = others
        self._sink = sink
        self._stopped = False
        self._neighbour: Neighbour | None = None
        self.bulky = False
        self.coming = 0
        self._bin = memoryview(b"")
        self.thread = Thread(target=self._run, name="mh-recv-?", daemon=True)

    def stop(self) -> None:
        """Ends it at once, without a word to the owner. Under the roster's lock."""
        self._stopped = True
        hang_up(self._connection)

    def _run(self) -> None:
        try:
            self._be_admitted()
            self._read_messages()
        except Stopped:
            self._end(logging.DEBUG, "it is no longer wanted")
        except HungUp:
            self._end(logging.INFO, "the other side closed it")
        except (WireError, OSError) as error:
            self._end(logging.WARNING, str(error))
        except Exception as error:  # of the owner's as a rule, in `place` or `arrived`
            tell_failed(self._sink, error)
            self._end(logging.ERROR, f"its message could not be taken: {type(error).__name__}: {error}")

    def _be_admitted(self) -> None:
        """Raises WireError for whoever fails the handshake or is not named as a member in time."""
        self._connection = handshake.secured(self._connection, dialled=False)
        peer, self._stream, offer = handshake.answer(self._connection, self._us, self._deadlines.step)
        self._neighbour = self._meet(peer, offer)
        self.thread.name = f"mh-recv-{peer}"
        with self._roster.changed:
            self.peer = peer
            for other in self._earlier():
                other.give_way()
            self._roster.changed.wait_for(self._may_enter_or_go, self._deadlines.pending)
            self._check_wanted()
            if peer not in self._roster.members:
                raise WireError(
                    f"{peer} is no member here, and was not named as one in {self._deadlines.pending:g} s"
                )
            if self._earlier():
                raise WireError(f"{peer} dialled again while its connection before is still being read")
            self.admitted = True
        handshake.admit(self._connection, self._deadlines.step, reads=self._neighbour is not None)
        kernel.prepare(self._connection, self._deadlines.stall)

    def _meet(self, peer: str, offer: bytes) -> Neighbour | None:
        """The memory of a peer on this host; None where there is none to be read."""
        if not (offer and self._us.offer):
            return None
        try:
            return Neighbour(offer, self._us.offer)
        except WireError as error:
            log.debug("%s sends what it shares: %s", peer, error)
            return None

    def _may_enter_or_go(self) -> bool:
        return self._stopped or (self.peer in self._roster.members and not self._earlier())

    def _earlier(self) -> list[Incoming]:
        same = (self.peer, self._stream)
        return [it for it in self._others if it is not self and (it.peer, it._stream) == same]

    def give_way(self) -> None:
        """The same peer has dialled again: what has come is still read, then this ends. Under the lock."""
        if self.admitted:
            hang_up(self._connection)
        else:
            self.stop()

    def _read_messages(self) -> None:
        head = memoryview(bytearray(HEADER_BYTES))
        while True:
            self._fill(head, between=True)
            self._check_wanted()
            self._read_message(wire.unpack(head, self._us.run, self._limits))

    def _read_message(self, header: Header) -> None:
        """Its payload; nothing of it is held here while the next one is waited for."""
        loan = self._loan(header)
        buffer = self._place(header, loan)
        self.bulky = header.kind is not Kind.MESSAGE
        if loan is None:
            buffer = self._receive_payload(header, buffer)
        else:
            buffer = self._copy_payload(loan, buffer)
        self._check_wanted()
        left_to_do = self._sink.arrived(self.peer, header, buffer)
        with self._roster.changed:
            self.reading = None
            self._roster.received += self.coming
            self._roster.received_bulk += self.coming if self.bulky else 0
            self.coming, self.bulky = 0, False
            self._roster.changed.notify_all()
        if left_to_do is not None:  # it may wait until others have handed over what they read
            left_to_do()

    def _loan(self, header: Header) -> Loan | None:
        """The payload in the sender's memory; None for one that follows."""
        if not header.lies_at:
            return None
        if self._neighbour is None:
            raise WireError(f"{header} lies in a memory that cannot be read here")
        return self._neighbour.loan(header, header.lies_at - 1)

    def _place(self, header: Header, loan: Loan | None) -> memoryview | None:
        """The owner's buffer; None for a slice that the fence keeps out, also if it came up meanwhile."""
        buffer = None if self._is_fenced_off(header) else self._sink.place(self.peer, header, loan)
        with self._roster.changed:
            self._check_wanted()
            if buffer is None or self._is_fenced_off(header):
                return None
            if buffer.nbytes != header.length:
                raise WireError(f"length: {header.length} bytes, expected {buffer.nbytes} for {header}")
            if header.kind in SLICES:
                self.reading = header.view, header.base
        if loan is not None and buffer is loan.payload:
            return buffer
        return buffer.cast("B") if buffer.nbytes else memoryview(b"")

    def _is_fenced_off(self, header: Header) -> bool:
        return header.kind in SLICES and (header.view, header.base) < self._roster.fenced

    def _copy_payload(self, loan: Loan, buffer: memoryview | None) -> memoryview | None:
        """The payload, unless it stays where it is; None if its memory holds something else by now."""
        if buffer is None or not loan.stands:
            return None
        if buffer is not loan.payload:
            np.copyto(np.frombuffer(buffer, np.uint8), np.frombuffer(loan.payload, np.uint8))
        self.coming += loan.payload.nbytes
        return buffer if loan.stands else None

    def _receive_payload(self, header: Header, buffer: memoryview | None) -> memoryview | None:
        """The payload from the line; None if it was thrown away."""
        checksum, buffer = self._read_payload(header.length, buffer)
        if checksum != header.checksum:
            raise WireError(
                f"payload checksum: {checksum:#018x}, expected {header.checksum:#018x} for {header}; "
                "it was damaged on the way, or changed while it was being sent"
            )
        return buffer

    def _read_payload(self, length: int, buffer: memoryview | None) -> tuple[int, memoryview | None]:
        """Reads it; returns its checksum, and the buffer unless the fence has come up meanwhile.

        What is left of such a slice is thrown away: its owner need not wait for a slow line.
        """
        hasher, got = xxhash.xxh3_64(), 0
        while got < length:
            if self._overtaken:
                buffer = None
                self._give_back()
            chunk = self._throw_away(length - got) if buffer is None else buffer[got:][:CHUNK]
            count = self._fill(chunk)
            hasher.update(chunk[:count])
            got += count
        return hasher.intdigest(), buffer

    @property
    def _overtaken(self) -> bool:
        """The fence has come up over the slice whose buffer is being filled."""
        return self.reading is not None and self.reading < self._roster.fenced

    def _give_back(self) -> None:
        with self._roster.changed:
            self.reading = None
            self._roster.changed.notify_all()

    def _throw_away(self, size: int) -> memoryview:
        if not self._bin:
            self._bin = memoryview(bytearray(CHUNK))
        return self._bin[:size]

    def _fill(self, buffer: memoryview, *, between: bool = False) -> int:
        """Reads until the buffer is full, or overtaken; returns how much. `between`: no hurry to begin."""
        got = 0
        heard = time.monotonic()
        while got < len(buffer) and not self._overtaken:
            try:
                count = self._connection.recv_into(buffer[got:], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                self._check_wanted()
                silence = time.monotonic() - heard
                if silence > self._deadlines.stall and not (between and got == 0):
                    raise WireError(
                        f"it stopped in the middle of a message and said nothing for {silence:.1f} s"
                    ) from None
                continue
            if count == 0:
                self._check_wanted()
                if between and got == 0:
                    raise HungUp
                raise WireError("it broke in the middle of a message")
            got += count
            heard = time.monotonic()
            self.coming += count
        return got

    def _check_wanted(self) -> None:
        if self._stopped:
            raise Stopped

    def _end(self, level: int, why: str) -> None:
        with self._roster.changed:
            wanted = not self._stopped
        sentence = f"lost the connection from {self.peer} at {self._address}: {why}"
        if wanted:
            log.log(level, sentence if self.admitted else f"refused a connection from {self._address}: {why}")
        with self._roster.changed:
            self._connection.close()
            self.reading = None
            self._roster.changed.notify_all()
        if wanted and self.admitted:
            tell_lost(self._sink, self.peer, sentence)
        # Not before: whoever comes after it is admitted when it is gone from here.
        with self._roster.changed:
            self._others.discard(self)
            self._roster.changed.notify_all()
