"""What is asked of the kernel for every connection: buffers, time limits, signs of life."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import Final, NamedTuple
from weakref import WeakSet

SAME_HOST_BUFFER_BYTES: Final = 256 * 1024
"""Socket buffers between two processes of one host; between hosts the kernel sizes them by the line.

Averaging 100 MB over loopback (2 cores, L2 1 MiB, L3 32 MiB, medians of 11): 2 members take 47 ms with
64 KiB, 47 with 256 KiB, 55 with 1 MiB and 62 as the kernel sizes them, where gloo takes 60; 4 members
149, 152, 178 and 178 ms, and gloo 142. What waits in a small buffer is still in the cache when it is read.
"""

BETWEEN_HOSTS: Final = b"cubic"
"""Congestion control between hosts, where every member sends to every other at once.

Averaging 10 MB over 4 hosts with lines of 100 Mbit/s takes 1.29 s with cubic and with reno, 1.57 s with bbr,
whose flows leave the line idle where they take turns; 1.20 s is the line's limit.
"""

TICK: Final = 1.0
"""Seconds after which a thread that waits in the kernel looks whether it is still wanted."""

# Of struct tcp_info: retransmits, probes, last_ack_recv (ms).
_SINCE_LAST_ACK: Final = struct.Struct("<2xBB52xI")
# Of struct tcp_info: bytes_acked, min_rtt (µs), busy_time (µs).
_PROGRESS: Final = struct.Struct("<120xQ20xI16xQ")
_open: Final[WeakSet[socket.socket]] = WeakSet()


def keep_from_forks(connection: socket.socket) -> socket.socket:
    """Closes the socket in every process forked from this one.

    The workers of a data loader would otherwise hold it open: killed, this process would not be missed
    by its peers before they are gone as well.
    """
    _open.add(connection)
    return connection


def _close_in_child() -> None:
    for connection in list(_open):
        connection.close()


os.register_at_fork(after_in_child=_close_in_child)


def prepare(connection: socket.socket, stall: float) -> None:
    """Sizes the buffers, makes every call wait in the kernel for `TICK` at most, and minds the other side.

    Python's own time limits would make the socket non-blocking: a `poll` before each call, and no
    MSG_WAITALL. A host that is gone is noticed after about `stall` seconds.
    """
    if _within_host(connection):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SAME_HOST_BUFFER_BYTES)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SAME_HOST_BUFFER_BYTES)
    elif hasattr(socket, "TCP_CONGESTION"):
        with suppress(OSError):  # it is not in every kernel; then as the system has it
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, BETWEEN_HOSTS)
    connection.settimeout(None)
    tick = max(0.001, min(TICK, stall / 4))
    limit = struct.pack("ll", int(tick), int(tick % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    bound_silence(connection, stall)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # where nothing is on its way
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(stall / 3)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(stall / 6)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def _within_host(connection: socket.socket) -> bool:
    own, other = connection.getsockname()[0], connection.getpeername()[0]
    return bool(own == other)


def bound_silence(connection: socket.socket, seconds: float) -> None:
    """What is sent breaks the connection when nothing of it has been acknowledged for so long.

    Behind a dropped address translation, or a cable pulled out, it would stay open for a quarter of an hour.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, round(1000 * seconds))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class Progress(NamedTuple):
    """Bytes that another host has acknowledged, and seconds: with something to send, and to it and back."""

    acknowledged: int
    busy: float
    round_trip: float


NO_PROGRESS: Final = Progress(0, 0.0, 0.0)


def progress(connection: socket.socket) -> Progress:
    """Of a connection to another host; nothing of one within this host."""
    if not hasattr(socket, "TCP_INFO") or _within_host(connection):
        return NO_PROGRESS
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _PROGRESS.size)
    if len(info) < _PROGRESS.size:
        return NO_PROGRESS
    acknowledged, round_trip, busy = _PROGRESS.unpack(info)
    return Progress(acknowledged, busy / 1e6, round_trip / 1e6)


def unanswered(connection: socket.socket) -> float:
    """Seconds for which the other kernel has left repeated packets or probes without an answer.

    Zero for a peer that merely does not read: its kernel answers, and it may well be waiting for its
    owner to say where a slice goes. That one is for the hub to judge.
    """
    if not hasattr(socket, "TCP_INFO"):
        return 0.0
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SINCE_LAST_ACK.size)
    if len(info) < _SINCE_LAST_ACK.size:
        return 0.0
    retransmits, probes, milliseconds = _SINCE_LAST_ACK.unpack(info)
    return milliseconds / 1000 if retransmits > 1 or probes > 1 else 0.0
