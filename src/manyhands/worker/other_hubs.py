"""One pool though there be two hubs: the older one is told of the newer, and its workers go there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

import msgspec
from websockets.exceptions import WebSocketException

from manyhands.core.messages import Followed, decode_answer, encode
from manyhands.exchange.kernel import keep_from_forks
from manyhands.worker.control import Control, open_socket

log = logging.getLogger("manyhands.worker")

ANSWER_SECONDS = 5.0


class OtherHubs:
    """Once a lease, compares the hub of a control connection with all the others it was given.

    Each is told which epoch this worker follows (`followed`, asked for on this object's thread), so that an
    older one steps down; where its answer has a newer epoch the worker leaves its own hub for it. So two hubs
    keep two pools only as long as no worker reaches both.
    """

    def __init__(self, control: Control, token: str, followed: Callable[[], Followed]) -> None:
        self._control, self._token, self._followed = control, token, followed
        self._closed = Event()
        self._thread = Thread(target=self._run, name="mh-control-compare", daemon=True)

    def start(self) -> None:
        """Begin, if there are others."""
        if self._control.others():
            self._thread.start()

    def close(self) -> None:
        """End, and wait for the thread, which may be dialling a host that does not answer."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(2 * ANSWER_SECONDS)

    def _run(self) -> None:
        while not self._closed.wait(self._control.silence):
            for url in self._control.others():
                if self._control.connected and not self._closed.is_set():
                    self._compare(url)

    def _compare(self, url: str) -> None:
        ours = self._followed()
        try:
            with open_socket(url, self._token, self._control.silence) as socket:
                keep_from_forks(socket.socket)
                socket.send(encode(ours))
                answer = socket.recv(ANSWER_SECONDS)
            theirs = decode_answer(answer if isinstance(answer, bytes) else answer.encode())
        except (OSError, WebSocketException, msgspec.DecodeError) as error:
            log.debug("no hub to compare at %s: %s", url, error)
            return
        if theirs.epoch > ours.epoch:
            log.info("the hub at %s is newer than the one that this worker has followed", url)
            self._control.follow(url)
