"""Where a run's hub listens: its port, and hub.json in the run's folder that tells others."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from manyhands.errors import ConfigurationError, MachineError, PortInUse

LOCK = "hub.lock"
"""In a run's folder: held by the hub that serves it."""

RETRY_SECONDS = 0.1
WILDCARDS = ("", "0.0.0.0", "::")
PRIVATE = 0o600


class Address(msgspec.Struct, frozen=True):
    """What hub.json says: how to reach the hub of a run, and the token that opens it."""

    url: str
    pid: int
    run: str
    token: str
    port: int


def read_address(folder: Path) -> Address | None:
    """The address of the hub that last served this folder; None when there was none.

    Raises `ConfigurationError` when hub.json is not what a hub wrote.
    """
    path = folder / "hub.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Address)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}; remove it") from None


def write_address(folder: Path, address: Address) -> None:
    """Write hub.json, whole or not at all, readable by its owner only."""
    path = folder / "hub.json"
    new = folder / f".hub.json.{os.getpid()}"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE), "wb") as file:
            file.write(msgspec.json.encode(address) + b"\n")
        new.replace(path)
    except OSError as error:
        raise MachineError(
            f"{path} cannot be written: {error.strerror}; free some space or choose another folder"
        ) from error


def url_of(host: str, port: int) -> str:
    """How a process on this machine reaches a hub that listens on `host`."""
    name = "127.0.0.1" if host in WILDCARDS else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


def listen(host: str, port: int, seconds: float = 0.0) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Tries for so many `seconds` while it is in use.

    Raises `PortInUse`, or `ConfigurationError` for a host that is not this machine.
    """
    if port == 0:
        return _listen_anywhere(host)
    until = time.monotonic() + seconds
    while True:
        try:
            return _listen(host, port)
        except PortInUse:
            if time.monotonic() >= until:
                raise
            time.sleep(RETRY_SECONDS)


def _listen_anywhere(host: str) -> socket.socket:
    """Below the range from which the kernel takes ports for outgoing connections.

    A port out of that range could be taken, while a killed hub is away, by somebody's outgoing
    connection; the next hub of the run could not have it back.
    """
    for _ in range(32):
        try:
            return _listen(host, random.randrange(15_000, 30_000))
        except PortInUse:
            continue
    return _listen(host, 0)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigurationError(
            f"no address is known for the host {host!r}: {error}; give --host an address"
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # connections inherit it
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host or 'this machine'} is in use: end the process that listens there, "
                "or choose another port with --port (0 takes a free one)"
            ) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigurationError(
                f"{host} is not an address of this machine: give --host one that is (0.0.0.0 for all)"
            ) from None
        raise MachineError(
            f"cannot listen on port {port} of {host}: {error.strerror}; choose another --port"
        ) from None
    listener.setblocking(False)
    return listener


@contextmanager
def sole(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold the folder as its only hub. Tries for so many `seconds`; raises `MachineError`."""
    until = time.monotonic() + seconds
    path = folder / LOCK
    try:
        file = open(path, "ab")  # noqa: SIM115 (closed below; closing it gives the lock back)
    except OSError as error:
        raise MachineError(
            f"the run folder {folder} cannot be written: {error.strerror}; choose another with --folder"
        ) from None
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    raise MachineError(
                        f"another hub serves the run folder {folder}: end it, or choose another with --folder"
                    ) from None
                time.sleep(RETRY_SECONDS)
        yield
