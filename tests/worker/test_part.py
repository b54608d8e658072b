"""One incarnation's part in the rounds, over an exchange that only keeps what is sent."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from arriving import arrive
from lone_part import Worker, oblige, start, view

from manyhands.core.messages import (
    Contribution,
    Freeze,
    Opened,
    Proposed,
    Staged,
    Standing,
    Version,
    Want,
    decode_for_peer,
    encode,
)
from manyhands.core.moves import Heard, Propose, Ready
from manyhands.errors import ProtocolError, WireError
from manyhands.exchange.wire import DType, Header, Kind
from manyhands.sharing.strategy import EveryStep
from manyhands.worker import part
from manyhands.worker.driving import Outcome
from manyhands.worker.part import Part


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


def test_an_event_that_cannot_be_ends_the_wait_of_the_script_whichever_thread_brought_it() -> None:
    a = Worker("a")
    a.part.tell(start())
    a.part.tell(Propose(Contribution("a", 0.0)))
    with pytest.raises(ProtocolError, match="proposed twice"):
        a.part.tell(Propose(Contribution("a", 0.0)))
    with pytest.raises(ProtocolError, match="proposed twice"):
        a.waiting.wait(lambda: a.part.outcome, 60.0)


# --- memory that is sent, and written again ---------------------------------------------------------


def contribution_of(peer: str, base: int, length: int) -> Header:
    """Of the contribution of `peer`, whose rank is its place in the alphabet, for "a"."""
    own = 1 << "abc".index(peer)
    return Header(Kind.CONTRIBUTION, 1, base, dtype=DType.FLOAT32, weight=1.0, subset=own, length=length)


def contributed(to: Part, peer: str, base: int, values: list[float]) -> None:
    """A slice of `peer` arrives for the only segment."""
    array = np.array(values, np.float32)
    header = contribution_of(peer, base, array.nbytes)
    place = to.place(peer, header)
    assert place is not None
    place[:] = array.view(np.uint8).data
    arrive(to, peer, header, place)


def of_three() -> Worker:
    """A member "a" of three whose own contribution, [1, 1, 1, 1], is ready."""
    a = Worker("a", strategy=EveryStep())
    a.part.tell(Opened(view(1, "a", "b", "c"), 0, ("a", "b", "c"), "first", Version(0, 0)))
    a.driver.contribution[:] = 1
    a.part.tell(Ready(0, 1.0))
    return a


def test_a_slice_that_is_combined_again_is_not_written_while_its_first_mean_is_being_sent() -> None:
    a, seen = of_three(), list[tuple[int, float]]()
    a.line.retired = lambda header: seen.append((header.subset, float(a.driver.combined[0])))
    contributed(a.part, "b", 0, [2.0, 2.0])
    contributed(a.part, "c", 0, [9.0, 9.0])
    assert a.driver.combined[0] == 4
    a.part.tell(Heard("c", Proposed(1, 0, Contribution("c", 0.0, rejected="NaN"))))
    assert seen == [(0b111, 4.0)] * 2
    means = [(peer, header.subset, payload) for peer, header, payload in a.line.slices(Kind.COMBINED)]
    first, second = (np.full(2, value, np.float32).tobytes() for value in (4, 1.5))
    assert sorted(means) == [
        ("b", 0b011, second),
        ("b", 0b111, first),
        ("c", 0b011, second),
        ("c", 0b111, first),
    ]
    again = contribution_of("c", 0, 8)
    assert a.part.place("c", again) is None


def test_a_slice_that_somebody_asks_for_again_is_not_queued_behind_itself() -> None:
    a = of_three()
    wanted = Heard("b", Want(1, 0, "contribution", (0,)))
    a.part.tell(wanted)
    assert len(a.line.slices(Kind.CONTRIBUTION)) == 2
    a.line.on_its_way.clear()
    a.part.tell(wanted)
    assert [peer for peer, _, _ in a.line.slices(Kind.CONTRIBUTION)] == ["b", "c", "b"]


def test_the_script_writes_its_contribution_again_only_when_nothing_of_it_is_being_sent() -> None:
    a = of_three()
    for name in ("b", "c"):
        a.part.tell(Heard(name, Proposed(1, 0, Contribution(name, 0.0))))
    a.part.tell(Propose(Contribution("a", 0.0, rejected="NaN")))
    assert Kind.CONTRIBUTION in {header.kind for _, header in a.line.on_its_way}
    assert a.part.take_outcome() == Outcome("committed")
    assert Kind.CONTRIBUTION not in {header.kind for _, header in a.line.on_its_way}


def test_a_combined_slice_is_not_sent_any_more_once_all_hold_the_version() -> None:
    a = Worker("a")
    a.part.tell(start())
    a.part.tell(Ready(0, 1.0))
    a.part.tell(Propose(Contribution("a", 1.0)))
    contributed(a.part, "b", 0, [2.0, 2.0])
    a.part.tell(Heard("b", Proposed(1, 0, Contribution("b", 1.0))))
    combined = Header(Kind.COMBINED, 1, slice=1, dtype=DType.FLOAT32, subset=0b11, length=8)
    place = a.part.place("b", combined)
    assert place is not None
    arrive(a.part, "b", combined, place)
    assert a.part.take_outcome() is not None
    wanted = Heard("b", Want(1, 0, "combined", (0,)))
    a.line.on_its_way.clear()
    a.part.tell(wanted)
    assert len(a.line.slices(Kind.COMBINED)) == 2
    oblige(a)
    assert [header for _, header in a.line.on_its_way if header.kind is Kind.COMBINED]
    a.part.tell(Heard("b", Staged(1, 1)))
    oblige(a)
    assert not [header for _, header in a.line.on_its_way if header.kind is Kind.COMBINED]
    a.part.tell(wanted)
    assert len(a.line.slices(Kind.COMBINED)) == 2


def wants(worker: Worker) -> list[str]:
    messages = [decode_for_peer(payload) for _, _, payload in worker.line.slices(Kind.MESSAGE)]
    return [message.kind for message in messages if isinstance(message, Want)]


def test_who_waits_asks_again_after_a_silence_longer_than_recent_rounds_took_but_a_hung_one_counts_for_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(part, "time", SimpleNamespace(monotonic=lambda: now[0]))
    a = Worker("a")
    a.waiting.patience = 1.0
    a.part.tell(start())
    for base in (0, 1):
        a.part.tell(Ready(0, 1.0))
        a.part.tell(Propose(Contribution("a", 1.0)))
        contributed(a.part, "b", base, [2.0, 2.0])
        a.part.tell(Heard("b", Proposed(1, base, Contribution("b", 1.0))))
        if base == 0:
            now[0] += 1.5
            a.part.press()
            assert wants(a) == ["combined"]
            now[0] += 40.0
            combined = Header(Kind.COMBINED, 1, slice=1, dtype=DType.FLOAT32, subset=0b11, length=8)
            place = a.part.place("b", combined)
            assert place is not None
            arrive(a.part, "b", combined, place)
    now[0] += 1.9
    a.part.press()
    assert wants(a) == ["combined"]
    a.line.received_bulk_bytes += 1  # part of a slice
    now[0] += 0.5
    a.part.press()
    now[0] += 1.9
    a.part.press()
    a.part.tell(Heard("b", Want(1, 1, "combined", (0,))))
    assert wants(a) == ["combined"]
    now[0] += 0.2
    a.part.press()
    assert wants(a) == ["combined"] * 2


def test_a_slice_is_not_written_where_one_of_an_older_round_may_still_be_coming_in() -> None:
    a = of_three()
    a.line.quiet = False
    contributed(a.part, "b", 0, [2.0, 2.0])
    with pytest.raises(ProtocolError, match="slices of older rounds were still being received"):
        contributed(a.part, "c", 0, [9.0, 9.0])
    assert not a.driver.combined.any()


def test_what_comes_twice_is_kept_out_of_the_vectors_once_its_round_is_over() -> None:
    """The script writes its next contribution where combined slices lie (I3)."""
    a = of_three()
    for name in ("b", "c"):
        a.part.tell(Heard(name, Proposed(1, 0, Contribution(name, 0.0))))
    a.part.tell(Propose(Contribution("a", 0.0, rejected="NaN")))
    assert a.part.take_outcome() == Outcome("committed")
    assert a.line.fenced == (1, 1)
    a.line.quiet = False
    with pytest.raises(ProtocolError, match="still being received"):
        a.part.yield_vectors()
    a.line.quiet = True
    a.part.yield_vectors()


@pytest.mark.parametrize("kind", ["contribution", "combined", "whole"])
def test_who_asks_for_segments_that_there_are_not_gets_none(kind: str) -> None:
    a = of_three()
    for segment in (-1, 1, 10**6):
        a.part.tell(Heard("b", Want(1, 0, kind, (segment,))))
    assert len(a.line.slices(Kind.CONTRIBUTION)) == 2  # to each of the others, as at the start
    assert not a.line.slices(Kind.COMBINED)
    assert not a.line.slices(Kind.WHOLE)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0])
def test_a_proposal_of_a_weight_that_is_none_is_no_message(weight: float) -> None:
    a = of_three()
    said = memoryview(encode(Proposed(1, 0, Contribution("b", weight))))
    with pytest.raises(WireError, match="no message between members"):
        a.part.arrived("b", Header(Kind.MESSAGE, 1), said)


def test_who_waits_for_others_to_hold_the_last_version_asks_those_whose_word_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(part, "time", SimpleNamespace(monotonic=lambda: now[0]))
    a = Worker("a")
    a.part.tell(start())
    now[0] += 1.5
    a.part.press()
    assert wants(a) == ["staged"]
    a.part.tell(Heard("b", Staged(1, 0)))
    now[0] += 5.0
    a.part.press()
    assert wants(a) == ["staged"]
