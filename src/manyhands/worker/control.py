"""The control connection to the hub: kept up by itself, one thread to read and one to write."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from threading import Event, Thread

import msgspec
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from manyhands.core.messages import Beat, Hello, Refuse, ToHub, ToWorker, decode_for_worker, encode
from manyhands.errors import HubUnreachable
from manyhands.exchange.kernel import keep_from_forks

log = logging.getLogger("manyhands.worker")

BEAT_SECONDS = 1.0
LONGEST_PAUSE = 2.0


class Control:
    """Says Hello on every connection, beats once a second, and hands on what the hub says.

    `hello` and `beat` are asked for on this object's threads; `heard` is called there too.
    """

    def __init__(
        self,
        url: str,
        token: str,
        hello: Callable[[], Hello],
        beat: Callable[[], Beat],
        heard: Callable[[ToWorker], None],
    ) -> None:
        self._url = url.rstrip("/").replace("http", "ws", 1) + "/control"
        self._token, self._hello, self._beat, self._heard = token, hello, beat, heard
        self._outbox: queue.Queue[ToHub | None] = queue.Queue()
        self._closed = Event()
        self._socket: ClientConnection | None = None
        self.connected = False
        self._threads = [
            Thread(target=self._read, name="mh-control-read", daemon=True),
            Thread(target=self._write, name="mh-control-write", daemon=True),
        ]

    def start(self, deadline: float) -> None:
        """Connect for the first time; HubUnreachable when no hub answers by `deadline` (monotonic)."""
        self._socket = self._dial(deadline)
        for thread in self._threads:
            thread.start()

    def send(self, message: ToHub) -> None:
        """Queue a message; what is queued while there is no connection is dropped: Hello says it all."""
        if self.connected:
            self._outbox.put(message)

    def close(self, seconds: float = 5.0) -> None:
        """Send what is queued, close, and wait for the threads."""
        deadline = time.monotonic() + seconds
        self._closed.set()
        self._outbox.put(None)
        if self._socket is None:
            return
        self._threads[1].join(max(0.0, deadline - time.monotonic()))
        self._socket.close()
        self._threads[0].join(max(0.0, deadline - time.monotonic()))

    def _dial(self, deadline: float) -> ClientConnection:
        pause, why = 0.05, "no attempt was made"
        while not self._closed.is_set():
            try:
                # As a context that `_read` or `close` leaves: newer releases warn of any other use.
                opened = connect(
                    self._url,
                    additional_headers={"Authorization": f"Bearer {self._token}"},
                    open_timeout=5.0,
                    close_timeout=1.0,
                    ping_interval=None,
                    max_size=16 << 20,
                    compression=None,
                    proxy=None,
                )
                socket = opened.__enter__()
                keep_from_forks(socket.socket)
                socket.send(encode(self._hello()))
            except (OSError, TimeoutError, WebSocketException) as error:
                why = str(error) or type(error).__name__
            else:
                self.connected = True
                return socket
            if time.monotonic() + pause > deadline:
                break
            self._closed.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise HubUnreachable(
            f"no hub answers at {self._url} ({why}): start one with `manyhands hub`, or correct MANYHANDS_HUB"
        )

    def _read(self) -> None:
        while not self._closed.is_set():
            socket = self._socket
            assert socket is not None
            try:
                while True:
                    data = socket.recv()
                    message = decode_for_worker(data if isinstance(data, bytes) else data.encode())
                    if isinstance(message, Refuse):  # the answer would be the same again
                        self._closed.set()
                    self._heard(message)
            except (OSError, WebSocketException):
                pass
            except msgspec.DecodeError as error:
                log.warning("the hub sent something that is no message, reconnecting: %s", error)
            self.connected = False
            socket.close()
            if self._closed.is_set():
                return
            log.info("the connection to the hub broke; training goes on while leased data lasts")
            try:
                self._socket = self._dial(float("inf"))
            except HubUnreachable:
                return

    def _write(self) -> None:
        due = 0.0
        while True:
            try:
                message = self._outbox.get(timeout=max(0.0, due - time.monotonic()))
                if message is None:
                    return
            except queue.Empty:
                if self._closed.is_set():
                    return
                message, due = self._beat(), time.monotonic() + BEAT_SECONDS
            socket = self._socket
            if socket is None or not self.connected:
                continue
            try:
                socket.send(encode(message))
            except (OSError, WebSocketException):
                self.connected = False
