"""A state on its way in parts, from several members to one that lacks it, over lines that the test holds."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from lone_part import Worker, oblige, view

from manyhands.core.messages import (
    Contribution,
    Entered,
    Freeze,
    Offered,
    Opened,
    PartsWanted,
    Proposed,
    SnapshotWanted,
    Staged,
    Version,
    View,
    decode_for_peer,
    encode,
)
from manyhands.core.moves import Heard, Propose
from manyhands.errors import PeerError, WireError
from manyhands.exchange.wire import Header, Kind
from manyhands.sharing import parts, tree
from manyhands.worker import healing

PART = 256
SHARED = 8
"""Parts of the parameters; besides there are those before the arrays, and a worker's own."""

Sent = tuple[str, str, Header, bytes]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", PART)


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The states that were packed."""
    packed, pack = list[object](), tree.pack

    def noted(state: object) -> bytearray:
        packed.append(state)
        return pack(state)

    monkeypatch.setattr(tree, "pack", noted)
    return packed


class Own:
    """What only this worker has: the state of an optimizer between two rounds, say."""

    def __init__(self, value: float) -> None:
        self.array = np.full(PART // 4, value, np.float32) + np.arange(PART // 4, dtype=np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"array": self.array}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.array = state["array"].copy()


class Member(Worker):
    """`own` differs from worker to worker unless it is given the same value."""

    def __init__(self, name: str, *, scale: float = 0.0, own: float = 0.0) -> None:
        self.own = Own(own)
        parameters = scale * np.arange(SHARED * PART // 4, dtype=np.float32)
        super().__init__(name, parameters, also=[self.own])
        self.alive = True

    def open(self, opened: Opened) -> None:
        self.part.tell(opened)


class Lines:
    """Between members: what is sent is delivered in order, while the one that heals waits for it.

    `before` is asked about each message: what it returns is delivered in place of the payload, None
    for nothing at all. `delivered` is what has been.
    """

    def __init__(self, *members: Member) -> None:
        self.members = {member.waiting.name: member for member in members}
        self.queue: deque[Sent] = deque()
        self.before: Callable[[Sent], bytes | None] = lambda sent: sent[3]
        self.delivered: list[Sent] = []
        for name, member in self.members.items():
            member.line.then = lambda peer, header, payload, name=name: self.queue.append(  # type: ignore[misc]
                (name, peer, header, payload)
            )

    def heal(self, name: str) -> bool:
        joiner = self.members[name]
        joiner.waiting.meanwhile = self.deliver
        try:
            return joiner.part.heal()
        finally:
            joiner.waiting.meanwhile = lambda: None

    def deliver(self) -> None:
        while self.queue:
            sent = self.queue.popleft()
            sender, peer, header, _ = sent
            if self.members[sender].alive and self.members[peer].alive:
                payload = self.before(sent)
                if payload is not None and self.members[sender].alive:
                    self.delivered.append(sent)
                    self.arrive(sender, self.members[peer], header, payload)
            self.members[sender].line.on_its_way.discard((peer, header))

    def arrive(self, sender: str, to: Member, header: Header, payload: bytes) -> None:
        if header.kind is Kind.MESSAGE:
            to.part.arrived(sender, header, memoryview(payload))
            oblige(to)
            return
        header = Header(header.kind, header.view, header.base, header.segment, length=len(payload))
        place = to.part.place(sender, header)
        to.line.received_bulk_bytes += len(payload)
        if place is not None:
            place[:] = payload
            to.part.arrived(sender, header, place)

    def die(self, name: str, *, heard_by: Sequence[str]) -> None:
        self.members[name].alive = False
        for other in heard_by:
            self.members[other].part.lost(name)

    def given(self, to: str) -> list[tuple[str, int]]:
        """Who gave which part, in order."""
        return [(s, h.segment) for s, peer, h, _ in self.delivered if peer == to and h.kind is Kind.SNAPSHOT]

    def came(self, view: int) -> list[bytes]:
        """Digests of the parts that were given in a view, in order."""
        return [
            parts.digest_of(p) for *_, h, p in self.delivered if h.kind is Kind.SNAPSHOT and h.view == view
        ]

    def asked(self, kind: type, by: str) -> list[tuple[str, Any]]:
        """Whom a worker has asked for what."""
        found = [
            (peer, decode_for_peer(payload))
            for peer, header, payload in self.members[by].line.sent
            if header.kind is Kind.MESSAGE
        ]
        return [(peer, message) for peer, message in found if isinstance(message, kind)]


def joined(*owns: float, joiners: str = "j") -> Lines:
    """Donors "a", "b", ... with the same parameters, and with what is their own; who joins has neither."""
    donors = [Member(name, scale=1.0, own=own) for name, own in zip("abc", owns, strict=False)]
    lines = Lines(*donors, *map(Member, joiners))
    open_view(lines, 1, "".join(d.waiting.name for d in donors), joiners)
    return lines


def open_view(lines: Lines, number: int, donors: str, joiners: str, at: int = 0) -> None:
    opened = Opened(view(number, *donors, *joiners), at, tuple(donors), "one joins", None)
    for name in (*donors, *joiners):
        member = lines.members[name]
        if name in donors and member.part.participant.phase == "outside":
            member.part.tell(Opened(opened.view, at, tuple(donors), "first", Version(at, 0)))
        else:
            member.part.tell(opened)


def assert_healed(lines: Lines, joiner: str = "j", like: str = "a") -> None:
    j, a = lines.members[joiner], lines.members[like]
    assert j.part.participant.phase == "member"
    np.testing.assert_array_equal(j.params["w"], a.params["w"])
    np.testing.assert_array_equal(j.own.array, a.own.array)


def test_parts_of_a_state_come_from_several_members_and_each_once() -> None:
    lines = joined(5.0, 5.0, 5.0)
    assert lines.heal("j")
    assert_healed(lines)
    given = lines.given("j")
    assert {giver for giver, _ in given} == {"a", "b", "c"}
    assert len({part for _, part in given}) == len(given) > SHARED
    assert isinstance(lines.members["j"].reported[-1], Entered)


def test_who_gives_faster_gives_more() -> None:
    lines = joined(5.0, 5.0)
    held, after = list[Sent](), [6]

    def slowly(sent: Sent) -> bytes | None:
        if sent[0] == "b" and sent[2].kind is Kind.SNAPSHOT and after:
            held.append(sent)
            return None
        if after and len(lines.given("j")) == after[0]:
            after.clear()
            lines.queue.extend(held)
        return sent[3]

    lines.before = slowly
    assert lines.heal("j")
    givers = [giver for giver, _ in lines.given("j")]
    assert 0 < givers.count("b") < givers.count("a")


@pytest.mark.parametrize("notices", ["the connection breaks", "it is silent"])
def test_what_a_donor_owes_when_it_dies_is_asked_of_the_others_and_nothing_else_again(notices: str) -> None:
    lines = joined(5.0, 5.0, 5.0)

    def dies(sent: Sent) -> bytes:
        if sent[0] == "c" and ("c", sent[2].segment) not in lines.given("j") and len(lines.given("j")) > 3:
            lines.die("c", heard_by="j" if notices == "the connection breaks" else "")
        return sent[3]

    lines.before = dies
    assert lines.heal("j")
    assert_healed(lines)
    assert not lines.members["c"].alive
    given = [part for _, part in lines.given("j")]
    assert len(set(given)) == len(given)


def test_a_part_with_other_bits_than_were_offered_is_refused_named_and_asked_of_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = joined(5.0, 5.0)
    corrupted = []

    def corrupt(sent: Sent) -> bytes:
        sender, _, header, payload = sent
        if sender == "b" and header.kind is Kind.SNAPSHOT and not corrupted:
            corrupted.append(header.segment)
            return bytes([payload[0] ^ 1]) + payload[1:]
        return payload

    lines.before = corrupt
    assert lines.heal("j")
    assert_healed(lines)
    assert [giver for giver, part in lines.given("j") if part == corrupted[0]] == ["b", "a"]
    assert f"got part {corrupted[0]} of the state from b with other bits than were offered" in caplog.text


def test_where_the_only_copy_has_a_part_with_other_bits_it_is_not_taken() -> None:
    lines = joined(5.0)
    lines.members["j"].waiting.patience = 1e-4

    def corrupt(sent: Sent) -> bytes:
        _, _, header, payload = sent
        return bytes(len(payload)) if header.kind is Kind.SNAPSHOT and header.segment == 3 else payload

    lines.before = corrupt
    with pytest.raises(PeerError, match="no member gave worker j the state"):
        lines.heal("j")


def test_a_member_on_the_same_host_gives_alone_and_the_others_when_it_dies() -> None:
    lines = joined(5.0, 5.0, 5.0)
    near = ("b", "j")
    members = tuple(
        msgspec.structs.replace(it, machine="here" if it.name in near else "there")
        for it in view(2, *"abcj").members
    )
    for name in "abcj":
        lines.members[name].part.tell(Freeze(2, False, "moved"))
        opened = Opened(View(2, members), 0, ("a", "b", "c"), "moved", Version(0, 0))
        lines.members[name].part.tell(opened)

    def dies(sent: Sent) -> bytes:
        if len(lines.given("j")) == 4:
            assert {giver for giver, _ in lines.given("j")} == {"b"}
            lines.die("b", heard_by="j")
        return sent[3]

    lines.before = dies
    assert lines.heal("j")
    assert_healed(lines)
    assert [peer for peer, _ in lines.asked(SnapshotWanted, by="j")] == ["b", "c"]


def test_what_is_a_workers_own_comes_from_one_donor_and_the_rest_from_all() -> None:
    lines = joined(5.0, 6.0, 7.0)
    assert lines.heal("j")
    own = lines.members["j"].own.array[0]
    like = {5.0: "a", 6.0: "b", 7.0: "c"}[float(own)]
    assert_healed(lines, like=like)
    assert {giver for giver, _ in lines.given("j")} == {"a", "b", "c"}


def test_the_state_is_that_of_another_donor_when_the_first_dies_before_it_has_given_its_own() -> None:
    lines = joined(5.0, 6.0)
    first = []

    def dies(sent: Sent) -> bytes:
        if sent[2].kind is Kind.SNAPSHOT and not first:
            offers = [s for s, _, h, p in lines.delivered if s != "j" and h.kind is Kind.MESSAGE]
            first.append(offers[0])
            lines.die(first[0], heard_by="j")
        return sent[3]

    lines.before = dies
    assert lines.heal("j")
    assert_healed(lines, like={"a": "b", "b": "a"}[first[0]])


def test_two_that_join_at_once_begin_with_other_donors_and_each_donor_copies_its_state_once(
    packings: list[object],
) -> None:
    lines = joined(5.0, 5.0, 5.0, joiners="jk")
    assert lines.heal("j")
    assert lines.heal("k")
    assert_healed(lines, "j")
    assert_healed(lines, "k")
    assert len(packings) == 3
    firsts = [lines.asked(SnapshotWanted, by=name)[0][0] for name in "jk"]
    assert len(set(firsts)) == 2


def test_after_a_view_change_nothing_that_is_there_is_asked_for_again_and_no_state_copied_anew(
    packings: list[object],
) -> None:
    lines = joined(5.0, 6.0, 7.0)
    changed: list[bytes] = []

    def dies(sent: Sent) -> bytes | None:
        if len(lines.given("j")) == 5 and not changed:
            changed.extend(lines.came(1))
            lines.die("c", heard_by="abj")
            for name in "abj":
                lines.members[name].part.tell(Freeze(2, False, "c is lost"))
            opened = Opened(view(2, "a", "b", "j"), 0, ("a", "b"), "c is lost", Version(0, 0))
            for name in "abj":
                lines.members[name].part.tell(opened)
        return sent[3]

    lines.before = dies
    assert not lines.heal("j")
    assert lines.heal("j")
    own = float(lines.members["j"].own.array[0])
    assert_healed(lines, like={5.0: "a", 6.0: "b"}[own])
    assert len(packings) == 3
    assert len(changed) == 5
    assert len(changed + lines.came(2)) == len({*changed, *lines.came(2)})


def test_of_a_newer_version_only_what_differs_is_fetched() -> None:
    lines, before = joined(5.0), list[bytes]()

    def opens(sent: Sent) -> bytes | None:
        if len(lines.given("j")) < 6 or before:
            return sent[3]
        a = lines.members["a"]
        a.part.tell(Freeze(2, False, "j is lost"))
        a.part.tell(Opened(view(2, "a"), 0, ("a",), "j is lost", Version(0, 0)))
        a.part.tell(Propose(Contribution("a", 0.0)))
        a.part.take_outcome()
        a.driver._base[:] = a.params["w"]  # type: ignore[attr-defined]
        before.extend(lines.came(1))
        open_view(lines, 3, "a", "j", at=1)
        return None

    lines.before = opens
    assert not lines.heal("j")
    lines.before = lambda sent: sent[3]
    assert lines.heal("j")
    assert_healed(lines)
    assert lines.members["j"].part.participant.version == Version(1, 2)
    assert len(before) == 6
    assert not set(before) & set(lines.came(3))
    assert 0 < len(lines.came(3)) < SHARED


# --- donors ----------------------------------------------------------------------------------------


def asks(donor: Worker, peer: str = "j", number: int = 1, at: int = 0) -> None:
    said = memoryview(encode(SnapshotWanted(number, at)))
    donor.part.arrived(peer, Header(Kind.MESSAGE, number), said)


def wants(donor: Worker, *numbers: int, peer: str = "j") -> None:
    said = memoryview(encode(PartsWanted(1, 0, numbers)))
    donor.part.arrived(peer, Header(Kind.MESSAGE, 1), said)


def a_donor() -> Member:
    a = Member("a", scale=1.0)
    a.part.tell(Opened(view(1, "a", "j"), 0, ("a",), "first", Version(0, 0)))
    return a


def offers(donor: Worker) -> list[str]:
    messages = donor.line.slices(Kind.MESSAGE)
    return [peer for peer, _, payload in messages if isinstance(decode_for_peer(payload), Offered)]


def given(donor: Worker) -> list[int]:
    return [header.segment for _, header, _ in donor.line.slices(Kind.SNAPSHOT)]


def test_a_state_is_offered_when_its_version_is_there_and_not_after_it() -> None:
    a = Worker("a")
    a.part.tell(Opened(view(2, "a", "b"), 0, ("a", "b"), "first", Version(0, 0)))
    for peer, number, at in (("b", 1, 0), ("c", 2, 1), ("d", 2, 0)):
        asks(a, peer, number, at)
    oblige(a)
    assert offers(a) == ["d"]
    a.part.tell(Heard("b", Proposed(2, 0, Contribution("b", 0.0))))
    a.part.tell(Propose(Contribution("a", 0.0)))
    oblige(a)  # the driver does not hold the version yet
    assert offers(a) == ["d"]
    a.part.take_outcome()
    oblige(a)
    oblige(a)
    assert offers(a) == ["d", "c"]


def test_parts_are_given_while_the_script_trains_on_as_they_were_when_they_were_offered() -> None:
    a = a_donor()
    asks(a)
    oblige(a)
    before = a.params["w"].copy()
    a.params["w"] += 1
    a.own.array += 1
    wants(a, *range(SHARED + 4))
    assert before.tobytes() in b"".join(payload for *_, payload in a.line.slices(Kind.SNAPSHOT))


def test_numbers_that_are_none_and_parts_that_are_on_their_way_are_not_sent() -> None:
    a = a_donor()
    wants(a, 0)
    asks(a)
    oblige(a)
    wants(a, -1, 10**6, 2, 2)
    wants(a, 2)
    assert given(a) == [2]
    a.line.on_its_way.clear()
    wants(a, 2)
    assert given(a) == [2, 2]


def test_a_copy_is_let_go_when_all_members_hold_its_version() -> None:
    a = a_donor()
    asks(a)
    oblige(a)
    a.part.tell(Heard("j", Staged(1, 0)))
    oblige(a)
    wants(a, 0)
    assert given(a) == []


def test_while_a_state_is_packed_the_worker_hears_its_peers_and_the_hub_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, packing, heard = Worker("a"), threading.Event(), threading.Event()
    a.part.tell(Opened(view(1, "a", "b", "j"), 0, ("a", "b"), "first", Version(0, 0)))
    pack = tree.pack

    def slowly(state: object) -> bytearray:
        packing.set()
        assert heard.wait(20.0)
        return pack(state)

    def hear() -> None:
        assert packing.wait(20.0)
        a.part.tell(Heard("b", Proposed(1, 0, Contribution("b", 0.0))))
        heard.set()

    monkeypatch.setattr(tree, "pack", slowly)
    hears = threading.Thread(target=hear)
    hears.start()
    asks(a)
    oblige(a)
    hears.join()
    assert offers(a) == ["j"]


def test_a_state_that_cannot_travel_costs_who_asks_for_it_and_not_who_has_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a = a_donor()
    capture, a.driver.capture = a.driver.capture, lambda: {"open": object()}  # type: ignore[method-assign]
    asks(a)
    oblige(a)
    assert "worker a cannot give its state to others" in caplog.text
    assert "cannot travel" in caplog.text
    assert offers(a) == []
    a.driver.capture = capture  # type: ignore[method-assign]
    asks(a)
    oblige(a)
    assert offers(a) == ["j"]


# --- who heals -------------------------------------------------------------------------------------


def say_while_j_installs(lines: Lines, *said: Freeze | Opened) -> None:
    """Members a and j hear this just as j has installed the state, the first time."""
    j = lines.members["j"]
    install = j.driver.install

    def installed(state: object) -> None:
        install(state)
        if j.part.participant.view == view(1, "a", "j"):
            say(lines, *said)

    j.driver.install = installed  # type: ignore[method-assign]


def say(lines: Lines, *said: Freeze | Opened) -> None:
    for name in "aj":
        for event in said:
            lines.members[name].part.tell(event)


def test_a_view_that_opens_while_a_state_is_installed_has_it_fetched_again() -> None:
    lines = joined(5.0)
    opened = Opened(view(2, "a", "j"), 0, ("a",), "again", Version(0, 0))
    say_while_j_installs(lines, Freeze(2, False, "again"), opened)
    assert not lines.heal("j")
    assert lines.members["j"].part.participant.phase == "healing"
    assert lines.heal("j")
    assert_healed(lines)


def test_who_is_frozen_while_a_state_is_installed_is_no_member_until_it_has_that_of_the_next_view() -> None:
    lines = joined(5.0)
    say_while_j_installs(lines, Freeze(2, False, "c is lost"))
    assert not lines.heal("j")
    say(lines, Opened(view(2, "a", "j"), 0, ("a",), "c is lost", Version(0, 0)))
    assert lines.heal("j")
    assert_healed(lines)


def test_where_no_source_gives_its_state_that_worker_ends_and_may_be_started_again() -> None:
    j = Worker("j")
    j.waiting.patience = 1e-4
    j.part.tell(Opened(view(1, "a", "j"), 0, ("a",), "j joins"))
    with pytest.raises(PeerError, match="no member gave worker j the state"):
        j.part.heal()
    assert [peer for peer, *_ in j.line.slices(Kind.MESSAGE)] == ["a"] * healing.ATTEMPTS


def test_while_bytes_come_in_nobody_is_asked_again_however_long_it_takes() -> None:
    lines = joined(5.0)
    j, looks = lines.members["j"], list[int]()
    j.waiting.patience = 1e-4
    held: list[Sent] = []

    def slowly(sent: Sent) -> bytes | None:
        if sent[2].kind is Kind.SNAPSHOT and sent not in held:
            held.append(sent)
            return None
        return sent[3]

    class Slow(type(j.line)):  # type: ignore[misc]
        @property
        def received_bulk_bytes(self) -> int:
            looks.append(len(looks))
            if not len(looks) % 30 and held:
                lines.queue.extend(held)
            return len(looks)

        @received_bulk_bytes.setter
        def received_bulk_bytes(self, value: int) -> None:
            pass

    j.line.__class__ = Slow
    lines.before = slowly
    assert lines.heal("j")
    assert len(lines.asked(SnapshotWanted, by="j")) == 1
    wanted = [part for _, message in lines.asked(PartsWanted, by="j") for part in message.parts]
    assert len(set(wanted)) == len(wanted)


def a_joiner() -> Worker:
    """It has asked "a", and nobody has answered."""
    j = Worker("j")
    j.waiting.patience = 1e-4
    j.part.tell(Opened(view(1, "a", "j"), 0, ("a",), "j joins"))
    with pytest.raises(PeerError):
        j.part.heal()
    return j


@pytest.mark.parametrize(
    ("length", "arrays", "digests"),
    [(1000, 100, 16 * 4), (1000, 1001, 16 * 5), (1000, -1, 16 * 5), (10**18, 0, 16), (1000, 100, 16 * 5 + 1)],
)
def test_an_offer_that_does_not_add_up_is_refused(length: int, arrays: int, digests: int) -> None:
    j = a_joiner()
    said = memoryview(encode(Offered(1, Version(0, 0), length, arrays, bytes(digests))))
    with pytest.raises(WireError, match="bytes of digests"):
        j.part.arrived("a", Header(Kind.MESSAGE, 1), said)


def test_a_part_of_another_length_or_number_than_was_offered_is_refused() -> None:
    j = a_joiner()
    said = memoryview(encode(Offered(1, Version(0, 0), 1000, 100, bytes(16 * 5))))
    j.part.arrived("a", Header(Kind.MESSAGE, 1), said)
    for number, length in ((0, 101), (1, 100), (5, 100)):
        with pytest.raises(WireError, match="not among the 5 that were offered"):
            j.part.place("a", Header(Kind.SNAPSHOT, 1, 0, number, length=length))


def test_what_comes_from_who_is_no_source_or_of_another_view_has_no_place() -> None:
    j = a_joiner()
    said = memoryview(encode(Offered(1, Version(0, 0), 100, 100, bytes(16))))
    j.part.arrived("x", Header(Kind.MESSAGE, 1), said)
    j.part.arrived("a", Header(Kind.MESSAGE, 1), memoryview(encode(Offered(2, Version(0, 0), 1, 1, b""))))
    for peer, number in (("x", 1), ("a", 1), ("a", 2)):
        assert j.part.place(peer, Header(Kind.SNAPSHOT, number, length=100)) is None
