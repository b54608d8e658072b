"""A hub that welcomes every worker, keeps what it is told, and says what the test wants."""

from __future__ import annotations

import threading
from typing import TypeVar

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from manyhands.core.messages import (
    Followed,
    Hello,
    Left,
    Member,
    Refuse,
    Serving,
    ToHub,
    Welcome,
    decode_for_hub,
    encode,
)

PATIENCE = 20.0
Kind = TypeVar("Kind")


class StandInHub:
    """`heard` are the incarnation and message of all that has come; `refusal` answers every Hello.

    `hangs_up`: it does so before any Hello, after the refusal, if there is one; `hung_up` is how often.

    `epoch` is in each welcome, and the answer to who follows another hub.
    """

    def __init__(self, host: str = "127.0.0.1", epoch: int = 0, lease: float = 5.0) -> None:
        self.epoch, self.lease = epoch, lease
        self.changed = threading.Condition()
        self.heard: list[tuple[str, ToHub]] = []
        self.closed: list[str] = []
        self.refusal: Refuse | None = None
        self.hangs_up, self.hung_up = False, 0
        self._connections: dict[str, ServerConnection] = {}
        self._server = serve(self._serve, host, 0, close_timeout=1.0)
        self.url = f"http://{host}:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="stand-in-hub")
        self._thread.start()

    def _serve(self, connection: ServerConnection) -> None:
        if self.hangs_up:
            if self.refusal is not None:
                connection.send(encode(self.refusal))
            connection.close()
            with self.changed:
                self.hung_up += 1
                self.changed.notify_all()
            return
        hello = decode_for_hub(_bytes(connection.recv(PATIENCE)))
        if isinstance(hello, Followed):
            connection.send(encode(Serving(self.epoch)))
            self._note(hello)
            return
        assert isinstance(hello, Hello)
        with self.changed:
            self._connections[hello.incarnation] = connection
        connection.send(encode(self.refusal or Welcome("run", 0, 1, self.lease, False, self.epoch)))
        message: ToHub = hello
        try:
            while True:
                self._note(message, hello.incarnation)
                message = decode_for_hub(_bytes(connection.recv()))
        except ConnectionClosed:
            with self.changed:
                self.closed.append(hello.incarnation)
                self.changed.notify_all()

    def _note(self, message: ToHub, incarnation: str = "") -> None:
        with self.changed:
            self.heard.append((incarnation, message))
            self.changed.notify_all()

    def say(self, incarnation: str, *messages: object) -> None:
        for message in messages:
            self._connections[incarnation].send(encode(message))

    def drop(self, incarnation: str) -> None:
        """Close the connection of an incarnation, which will soon be back."""
        self._connections[incarnation].close()

    def wait_for(self, kind: type[Kind], incarnation: str = "", number: int = 1) -> Kind:
        """The message of this kind, of any incarnation or this one, that came as the `number`th."""

        def come() -> list[Kind]:
            return [m for who, m in self.heard if isinstance(m, kind) and incarnation in ("", who)]

        with self.changed:
            assert self.changed.wait_for(lambda: len(come()) >= number, PATIENCE), f"{kind} did not come"
            return come()[number - 1]

    def member(self, number: int = 1) -> Member:
        """The `number`th incarnation that said Hello."""
        hello = self.wait_for(Hello, number=number)
        return Member(hello.incarnation, hello.name, hello.host, hello.port)

    def wait_for_end(self, incarnation: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: incarnation in self.closed, PATIENCE)

    def left(self) -> list[Left]:
        return [message for _, message in self.heard if isinstance(message, Left)]

    def close(self) -> None:
        self._server.shutdown()
        for connection in self._connections.values():
            connection.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def _bytes(data: str | bytes) -> bytes:
    assert isinstance(data, bytes)
    return data
