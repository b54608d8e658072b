"""The control connection to the hub: kept up by itself, one thread to read and one to write."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from threading import Condition, Event, Thread

import msgspec
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from manyhands.core.messages import (
    STRANGER,
    Beat,
    Hello,
    Left,
    Refuse,
    Saved,
    ToHub,
    ToWorker,
    Unreadable,
    Welcome,
    decode_for_worker,
    encode,
)
from manyhands.errors import HubUnreachable
from manyhands.exchange.kernel import bound_silence, keep_from_forks

log = logging.getLogger("manyhands.worker")

BEAT_SECONDS, BEATS_IN_A_LEASE = 1.0, 4
LONGEST_PAUSE, IGNORED_PAUSE = 2.0, 0.2
FRAME_BYTES = 16 << 20
SILENCE_SECONDS = 10.0
"""Until the hub has said how long a lease is."""

NOT_IN_HELLO = (Beat, Saved, Unreadable, Left)


class Control:
    """Says Hello on every connection, beats once a second or four times a lease, hands on what the hub says.

    `urls`: of the hub, and of those that may take over from it, with commas between; tried in turn.

    `hello`, which is given the address of our end of the connection, and `beat` are asked for on this
    object's threads, and the first `hello` in `start`; `heard` is called there too, and `failed`
    when one of them raises what it should not: the thread has ended then. `lock` is held while a Hello
    is made; whoever sends holds it from the change that a message is about, so that the change is
    either in the Hello or told after it, and never both.
    """

    def __init__(
        self,
        urls: str,
        token: str,
        hello: Callable[[str], Hello],
        beat: Callable[[], Beat],
        heard: Callable[[ToWorker], None],
        failed: Callable[[Exception], None],
        lock: AbstractContextManager[object],
    ) -> None:
        self._urls = deque(url.rstrip("/").replace("http", "ws", 1) + "/control" for url in urls.split(","))
        self._url = self._urls[0]  # of the hub that was greeted last
        self._token, self._hello, self._beat, self._heard = token, hello, beat, heard
        self._failed, self._lock = failed, lock
        self._changed = Condition()  # of all below; taken after `lock`, never before it
        self._outbox: deque[ToHub] = deque()
        self._closed = Event()
        self._socket: ClientConnection | None = None
        self._welcomed = False  # by a hub of this run, some time
        self._open = False  # the Hello of this connection is made: what comes now is news
        self.connected = False
        self.silence = SILENCE_SECONDS
        self._threads = [
            Thread(target=self._run, args=(part,), name=f"mh-control-{name}", daemon=True)
            for name, part in (("read", self._read), ("write", self._write))
        ]

    def start(self, deadline: float) -> None:
        """Connect for the first time; HubUnreachable when no hub answers by `deadline` (monotonic)."""
        self._dial(deadline)
        for thread in self._threads:
            thread.start()

    def send(self, message: ToHub) -> None:
        """Queue a message. Without a connection, what Hello says too is dropped, and so are suspicions."""
        with self._changed:
            if self._open or isinstance(message, NOT_IN_HELLO):
                self._outbox.append(message)
                self._changed.notify_all()

    def bound_silence(self, seconds: float) -> None:
        """Dial again where the hub's host acknowledges nothing for so long, or the hub answers no ping."""
        with self._changed:
            self.silence = seconds
            self._changed.notify_all()
            if self._socket is not None:
                self._socket.ping_interval, self._socket.ping_timeout = seconds / 2, seconds
                with suppress(OSError):  # it has just broken
                    bound_silence(self._socket.socket, seconds)

    def others(self) -> list[str]:
        """The websocket URLs of all hubs but the one that is followed."""
        return [url for url in list(self._urls) if url != self._url]

    def follow(self, url: str) -> None:
        """Leave the hub for this one of `others`; where it cannot be had they are tried in turn."""
        with self._changed:
            self._urls.rotate(-self._urls.index(url))
            socket = self._socket
        if socket is not None:
            socket.close()

    def close(self, seconds: float = 5.0) -> None:
        """Send what is queued, close, and wait for the threads."""
        deadline = time.monotonic() + seconds
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            socket = self._socket
        if socket is None:
            return
        reads, writes = self._threads
        if writes.is_alive():  # else the first Hello has failed, and none was started
            writes.join(max(0.0, deadline - time.monotonic()))
        socket.close()
        if reads.is_alive():
            reads.join(max(0.0, deadline - time.monotonic()))

    def _run(self, part: Callable[[], None]) -> None:
        try:
            part()
        except Exception as error:
            self._failed(error)

    def _dial(self, deadline: float) -> None:
        pause, why = 0.05, "no attempt was made"
        while not self._closed.is_set():
            try:
                # As a context that `_read` or `close` leaves: newer releases warn of any other use.
                opened = open_socket(self._urls[0], self._token, self.silence)
                self._greet(opened.__enter__(), self._urls[0])
            except (OSError, TimeoutError, WebSocketException) as error:
                why = str(error) or type(error).__name__
                self._urls.rotate(-1)
            else:
                return
            if time.monotonic() + pause > deadline:
                break
            self._closed.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        urls = " or ".join(sorted(self._urls))
        raise HubUnreachable(
            f"no hub answers at {urls} ({why}): start one with `manyhands hub`, or correct MANYHANDS_HUB"
        )

    def _greet(self, socket: ClientConnection, url: str) -> None:
        """Say Hello, unless the hub has refused and hung up before."""
        try:
            keep_from_forks(socket.socket)
            local = socket.local_address[0]
        except OSError:  # it is closed already
            if not self._refused(socket):
                raise
            return
        with self._lock:
            hello = self._hello(local)
            with self._changed:
                self._outbox = deque(message for message in self._outbox if isinstance(message, NOT_IN_HELLO))
                self._open, self._socket, self._url = True, socket, url
                with suppress(OSError):  # it has just broken
                    bound_silence(socket.socket, self.silence)
        try:
            socket.send(encode(hello))
        except (OSError, WebSocketException):
            if not self._refused(socket):
                raise
            return
        with self._changed:
            self.connected = self._open
            self._changed.notify_all()

    def _refused(self, socket: ClientConnection) -> bool:
        """Has the hub said that it wants nothing of this worker, before it hung up?"""
        refusal = next((m for m in self._messages(socket) if isinstance(m, Refuse)), None)
        self._broke(socket)
        if refusal is None or not self._is_final(refusal):
            return False
        self._closed.set()
        self._heard(refusal)
        return True

    def _is_final(self, refusal: Refuse) -> bool:
        """The answer would be the same again, but where another run's hub answers in place of this one's."""
        return refusal.kind != STRANGER or not self._welcomed

    def _broke(self, socket: ClientConnection) -> None:
        with self._changed:
            if socket is self._socket:
                self._open = self.connected = False
        socket.close()

    def _read(self) -> None:
        pause = IGNORED_PAUSE
        while not self._closed.is_set():
            socket = self._socket
            assert socket is not None
            heard = False
            for message in self._messages(socket):
                if isinstance(message, Refuse):
                    if not self._is_final(message):
                        log.warning("what answers at %s is no hub of this run any more", self._url)
                        break
                    self._closed.set()
                heard, self._welcomed = True, self._welcomed or isinstance(message, Welcome)
                self._heard(message)
            self._broke(socket)
            if self._closed.is_set():
                return
            log.info("the connection to the hub broke; training goes on while leased data lasts")
            if not heard:  # it has no say: another one may have taken over, also at the same address
                if self._urls[0] == self._url:
                    self._urls.rotate(-1)
                self._closed.wait(pause)
            pause = IGNORED_PAUSE if heard else min(2 * pause, LONGEST_PAUSE)
            try:
                self._dial(float("inf"))
            except HubUnreachable:
                return

    def _messages(self, socket: ClientConnection) -> Iterator[ToWorker]:
        """What the hub says, until the connection breaks."""
        try:
            while True:
                data = socket.recv()
                yield decode_for_worker(data if isinstance(data, bytes) else data.encode())
        except (ConnectionClosed, OSError):
            pass
        except msgspec.DecodeError as error:
            log.warning("the hub sent something that is no message, reconnecting: %s", error)

    def _write(self) -> None:
        beaten = 0.0
        while True:
            with self._changed:
                silence = self.silence
                due = beaten + min(BEAT_SECONDS, silence / BEATS_IN_A_LEASE)
                self._changed.wait_for(
                    lambda as_it_was=silence: (  # type: ignore[misc]
                        self._closed.is_set()
                        or (self._outbox and self.connected)
                        or self.silence != as_it_was
                    ),
                    max(0.0, due - time.monotonic()),
                )
                if self.silence != silence:
                    continue
                socket = self._socket if self.connected else None
                message = self._outbox[0] if self._outbox and socket is not None else None
            if message is None:
                if self._closed.is_set():
                    return
                message, beaten = self._beat(), time.monotonic()
            if socket is None:
                continue
            try:
                socket.send(encode(message))
            except (OSError, WebSocketException):
                self._broke(socket)
            else:
                with self._changed:
                    if self._outbox and self._outbox[0] is message:
                        self._outbox.popleft()


def open_socket(url: str, token: str, silence: float) -> ClientConnection:
    """A connection to a hub that is closed when it answers no ping for so many seconds."""
    return connect(
        url,
        additional_headers={"Authorization": f"Bearer {token}"},
        open_timeout=5.0,
        close_timeout=1.0,
        ping_interval=silence / 2,
        ping_timeout=silence,
        max_size=FRAME_BYTES,
        compression=None,
        proxy=None,
    )
