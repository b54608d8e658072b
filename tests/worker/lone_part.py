"""A part over an exchange that only keeps what is sent: what tests of parts and of healing stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from manyhands.core.messages import Member, Opened, Version, View
from manyhands.exchange.roster import Address, Deadlines
from manyhands.exchange.wire import Header, Kind
from manyhands.sharing.combine import Array
from manyhands.sharing.strategy import LocalSGD, Strategy
from manyhands.worker.driving import driver_for
from manyhands.worker.part import Part
from manyhands.worker.progress import Progress
from manyhands.worker.waiting import Waiting


class Line:
    """In place of an exchange: `sent` is what was queued, and `then` is called with it."""

    def __init__(self) -> None:
        self.deadlines = Deadlines()
        self.sent: list[tuple[str, Header, bytes]] = []
        self.then: Callable[[str, Header, bytes], None] = lambda *_: None
        self.on_its_way: set[tuple[str, Header]] = set()
        self.retired: Callable[[Header], None] = lambda _: None
        self.quiet = True
        self.fenced = 0, 0
        self.received_bulk_bytes = 0

    def carries(self, peer: str, header: Header) -> bool:
        return (peer, header) in self.on_its_way

    def retire(self, useless: Callable[[Header], bool], deadline: float) -> bool:  # noqa: ARG002
        for peer, header in [entry for entry in self.on_its_way if useless(entry[1])]:
            self.retired(header)
            self.on_its_way.discard((peer, header))
        return True

    def fence(self, view: int, base: int = 0) -> None:
        self.fenced = max(self.fenced, (view, base))

    def members(self, peers: dict[str, Address]) -> None:
        pass

    def quiesce(self, view: int, base: int, deadline: float) -> bool:  # noqa: ARG002
        return self.quiet

    def send(self, peer: str, header: Header, payload: bytes | bytearray | memoryview) -> None:
        self.on_its_way.add((peer, header))
        self.sent.append((peer, header, bytes(payload)))
        self.then(peer, header, bytes(payload))

    def send_all(self, peers: Iterable[str], header: Header, payload: memoryview) -> None:
        for peer in peers:
            self.send(peer, header, payload)

    def slices(self, kind: Kind) -> list[tuple[str, Header, bytes]]:
        return [entry for entry in self.sent if entry[1].kind is kind]


class Worker:
    """A part with what it stands on; `reported` is what went to the hub."""

    def __init__(
        self,
        name: str,
        parameters: Array | None = None,
        strategy: Strategy | None = None,
        also: Iterable[object] = (),
    ) -> None:
        self.line, self.reported = Line(), list[Any]()
        self.waiting, self.progress = Waiting(name, patience=0.01), Progress()
        self.params = {"w": np.zeros(4, np.float32) if parameters is None else parameters}
        strategy = strategy or LocalSGD(2)
        self.driver = driver_for(self.params, None, strategy, also)
        self.driver.attach(Rounds())
        self.part = Part(
            name,
            self.driver,
            self.progress,
            self.line,  # type: ignore[arg-type]
            None,
            strategy,
            "run-1",
            self.waiting,
            self.reported.append,
        )


class Rounds:
    alone, size, hurry = False, 2, False


def oblige(worker: Worker) -> None:
    with worker.waiting.changed:
        worker.part.oblige()


def view(number: int, *names: str) -> View:
    return View(number, tuple(Member(name, name, "127.0.0.1", 1) for name in names))


def start(number: int = 1) -> Opened:
    return Opened(view(number, "a", "b"), 0, ("a", "b"), "first", Version(0, 0))
