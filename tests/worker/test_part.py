"""One incarnation's part in the rounds, over an exchange that only keeps what is sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from manyhands.core.messages import (
    Contribution,
    Freeze,
    Member,
    Opened,
    Proposed,
    SnapshotWanted,
    Standing,
    Version,
    View,
    decode_for_peer,
    encode,
)
from manyhands.core.moves import Heard, Propose, Ready
from manyhands.errors import ProtocolError, RunLost, WireError
from manyhands.exchange.roster import Address, Deadlines
from manyhands.exchange.wire import DType, Header, Kind
from manyhands.sharing.strategy import LocalSGD
from manyhands.worker.driving import Outcome, driver_for
from manyhands.worker.part import Part
from manyhands.worker.progress import Progress
from manyhands.worker.waiting import Waiting


class Line:
    """In place of an exchange: `sent` is what was queued, and `then` is called with it."""

    def __init__(self) -> None:
        self.deadlines = Deadlines()
        self.sent: list[tuple[str, Header, bytes]] = []
        self.then: Callable[[Header, bytes], None] = lambda *_: None

    def fence(self, view: int) -> None:
        pass

    def members(self, peers: dict[str, Address]) -> None:
        pass

    def quiesce(self, deadline: float) -> bool:  # noqa: ARG002
        return True

    def send(self, peer: str, header: Header, payload: bytes | bytearray | memoryview) -> None:
        self.sent.append((peer, header, bytes(payload)))
        self.then(header, bytes(payload))

    def send_all(self, peers: Iterable[str], header: Header, payload: memoryview) -> None:
        for peer in peers:
            self.send(peer, header, payload)

    def states(self) -> list[bytes]:
        return [payload for _, header, payload in self.sent if header.kind is Kind.SNAPSHOT]


class Worker:
    """A part with what it stands on; `reported` is what went to the hub."""

    def __init__(self, name: str, value: float = 0.0) -> None:
        self.line, self.reported = Line(), list[Any]()
        self.waiting, self.progress = Waiting(name, patience=0.01), Progress()
        self.params = {"w": np.full(4, value, np.float32)}
        self.driver = driver_for(self.params, None, LocalSGD(2))
        self.driver.attach(Rounds())
        self.part = Part(
            name,
            self.driver,
            self.progress,
            self.line,  # type: ignore[arg-type]
            self.waiting,
            self.reported.append,
        )


class Rounds:
    alone, size, hurry = False, 2, False


def view(number: int, *names: str) -> View:
    return View(number, tuple(Member(name, name, "127.0.0.1", 1) for name in names))


def start(number: int = 1) -> Opened:
    return Opened(view(number, "a", "b"), 0, ("a", "b"), "first", Version(0, 0))


def slice_of(length: int = 8, number: int = 1) -> Header:
    return Header(Kind.CONTRIBUTION, number, dtype=DType.FLOAT32, length=length)


def test_a_message_of_a_view_to_come_is_kept_until_the_view_opens() -> None:
    a = Worker("a")
    a.part.tell(Heard("b", Proposed(1, 0, Contribution("b", 0.0))))
    a.part.tell(start())
    assert a.part.take_outcome() is None
    a.part.tell(Propose(Contribution("a", 0.0)))
    assert a.part.take_outcome() == Outcome("committed")
    assert a.part.take_outcome() is None


@pytest.mark.parametrize("ends", ["the view opens", "it is released"])
def test_a_slice_of_a_view_to_come_waits_for_its_place(ends: str) -> None:
    a, places = Worker("a"), list[memoryview | None]()
    waits = threading.Thread(target=lambda: places.append(a.part.place("b", slice_of())))
    waits.start()
    if ends == "the view opens":
        a.part.tell(start())
    else:
        a.part.release()
    waits.join(20.0)
    assert [place and place.nbytes for place in places] == [8 if ends == "the view opens" else None]


def test_a_slice_of_another_length_or_of_an_older_view_has_no_place() -> None:
    a = Worker("a")
    a.part.tell(start(2))
    with pytest.raises(WireError, match="length: 12 bytes, expected 8 for this slice"):
        a.part.place("b", slice_of(12, 2))
    assert a.part.place("b", slice_of(number=1)) is None
    assert a.part.place("nobody", slice_of(number=2)) is None
    assert a.part.place("b", Header(Kind.SNAPSHOT, 2, length=10)) is None


def test_a_round_that_a_view_change_aborted_is_written_and_announced_again() -> None:
    a = Worker("a")
    a.part.tell(start())
    a.part.tell(Ready(0, 1.0))
    a.part.tell(Propose(Contribution("a", 1.0)))
    a.driver.combined[:] = np.nan  # as half-way through the round that is aborted
    a.part.tell(Freeze(2, False, "b is lost"))
    assert isinstance(a.reported[-1], Standing)
    assert a.reported[-1].view == 2
    a.part.tell(Opened(view(2, "a"), 0, ("a",), "b is lost", Version(0, 0)))
    assert a.part.refill
    assert a.part.write_again()
    assert not a.driver.contribution.any()
    a.part.tell(Ready(0, 1.0))
    assert a.part.take_outcome() == Outcome("committed", 1.0, (b"",))
    assert not a.part.write_again()


def test_a_state_is_given_when_its_version_is_there_and_not_after_it() -> None:
    a = Worker("a")
    a.part.tell(start(2))
    for number, at in ((1, 0), (2, 1), (2, 0)):
        a.part.arrived("b", Header(Kind.MESSAGE, number), memoryview(encode(SnapshotWanted(number, at))))
    a.part.give()
    assert len(a.line.states()) == 1
    a.part.tell(Heard("b", Proposed(2, 0, Contribution("b", 0.0))))
    a.part.tell(Propose(Contribution("a", 0.0)))
    a.part.give()  # the driver does not hold the version yet
    assert len(a.line.states()) == 1
    a.part.take_outcome()
    a.part.give()
    a.part.give()
    assert len(a.line.states()) == 2


def state(value: float) -> bytes:
    """What a worker with these parameters gives at version 0."""
    donor = Worker("a", value)
    donor.part.tell(start())
    donor.part.arrived("b", Header(Kind.MESSAGE, 1), memoryview(encode(SnapshotWanted(1, 0))))
    donor.part.give()
    return donor.line.states()[0]


class Joiner(Worker):
    """Takes view after view with "a" as its source, which answers with a state of the view's number."""

    def __init__(self) -> None:
        super().__init__("b")
        self.line.then = self.answered
        self.views = 1
        self.part.tell(Opened(view(1, "a", "b"), 0, ("a",), "b joins"))

    def answered(self, header: Header, payload: bytes) -> None:
        if isinstance(decode_for_peer(payload), SnapshotWanted):
            given = state(header.view)
            header = Header(Kind.SNAPSHOT, header.view, length=len(given))
            place = self.part.place("a", header)
            assert place is not None
            place[:] = given
            self.part.arrived("a", header, place)


def test_a_joiner_becomes_a_member_with_the_state_of_a_source() -> None:
    b = Joiner()
    assert b.part.heals
    assert b.part.heal()
    assert not b.part.heals
    assert b.part.participant.phase == "member"
    assert [(told.view, told.version) for told in b.reported] == [(1, Version(0, 0))]
    np.testing.assert_array_equal(b.params["w"], np.ones(4, np.float32))


def test_a_view_that_opens_while_a_state_is_installed_has_it_fetched_again() -> None:
    b = Joiner()
    install = b.driver.install

    def installed(tree: object) -> None:
        install(tree)
        if b.part.participant.view == view(1, "a", "b"):
            b.part.tell(Opened(view(2, "a", "b"), 0, ("a",), "again", Version(0, 0)))

    b.driver.install = installed  # type: ignore[method-assign]
    assert not b.part.heal()
    assert b.part.participant.phase == "healing"
    assert b.part.heal()
    assert b.part.participant.phase == "member"
    np.testing.assert_array_equal(b.params["w"], np.full(4, 2, np.float32))


def test_where_no_source_gives_its_state_the_run_is_lost() -> None:
    b = Worker("b")
    b.part.tell(Opened(view(1, "a", "b"), 0, ("a",), "b joins"))
    with pytest.raises(RunLost, match="no member gave this worker the state"):
        b.part.heal()
    assert [peer for peer, header, _ in b.line.sent if header.kind is Kind.MESSAGE] == ["a"] * 3


def test_an_event_that_cannot_be_ends_the_wait_of_the_script_whichever_thread_brought_it() -> None:
    a = Worker("a")
    a.part.tell(start())
    a.part.tell(Propose(Contribution("a", 0.0)))
    with pytest.raises(ProtocolError, match="proposed twice"):
        a.part.tell(Propose(Contribution("a", 0.0)))
    with pytest.raises(ProtocolError, match="proposed twice"):
        a.waiting.wait(lambda: a.part.outcome, 60.0)
