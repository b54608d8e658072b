from __future__ import annotations

import errno
import gc
import os
import threading

import numpy as np
import psutil
import pytest
from puppets import (
    PATIENCE,
    RUN,
    TOKEN,
    Pool,
    Recorder,
    eventually,
    introduce,
    message,
    slice_of,
    threads_of_exchanges,
    until,
    whole,
    with_puppet,
)

from manyhands.errors import MachineError, PortInUse, WireError
from manyhands.exchange import wire
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import DType, Header, Kind


@pytest.mark.parametrize("elements", [0, 1, 1000, 1 << 20, (9 << 20) + 3])
def test_slices_arrive_bit_exact_in_the_buffer_the_owner_chose(pool: Pool, elements: int) -> None:
    a, at_a, b, at_b = pool.pair()
    out = np.random.default_rng(elements).integers(0, 2**32, elements, np.uint32).view(np.float32)
    landed = {"a": np.zeros(elements, np.float32), "b": np.zeros(elements, np.float32)}
    at_a.where = lambda _: landed["a"].data
    at_b.where = lambda _: landed["b"].data
    header = Header(Kind.COMBINED, 7, 8, 9, 10, DType.FLOAT32, 2.5, 11)
    assert a.send("b", header, out.data)
    assert b.send("a", header, out.data)
    for owner, peer in ((at_a, "b"), (at_b, "a")):
        ((sender, got, _),) = owner.wait_for_messages(1)
        assert sender == peer
        assert (got.kind, got.view, got.base, got.segment, got.slice) == (Kind.COMBINED, 7, 8, 9, 10)
        assert (got.dtype, got.weight, got.subset, got.length) == (DType.FLOAT32, 2.5, 11, 4 * elements)
        assert landed[{"a": "b", "b": "a"}[peer]].tobytes() == out.tobytes()


def test_messages_on_one_link_keep_their_order(pool: Pool) -> None:
    a, _, _, at_b = pool.pair()
    for number in range(500):
        a.send("b", message(number), bytes([number % 256]) * (number % 7 * 10_000))
    taken = at_b.wait_for_messages(500)
    assert [header.base for _, header, _ in taken] == list(range(500))
    assert all(
        payload == bytes([number % 256]) * (number % 7 * 10_000)
        for number, (_, _, payload) in enumerate(taken)
    )


def test_one_message_goes_to_several_members_at_once(pool: Pool) -> None:
    owners = {name: Recorder() for name in "abc"}
    exchanges = {name: pool.exchange(name, owner) for name, owner in owners.items()}
    introduce(**exchanges)
    assert exchanges["a"].send_all(["b", "c", "nobody"], slice_of(1), b"combined") == 2
    for name in "bc":
        assert owners[name].wait_for_messages(1)[0][2] == b"combined"


def test_what_the_owner_has_no_place_for_is_thrown_away_and_the_next_one_comes(pool: Pool) -> None:
    a, _, _, at_b = pool.pair()
    at_b.where = lambda header: None if header.base == 0 else memoryview(bytearray(header.length))
    a.send("b", message(0), bytes(10_000_000))
    a.send("b", message(1), b"next")
    assert [payload for _, _, payload in at_b.wait_for_messages(2)] == [None, b"next"]


def test_an_owner_may_take_its_time_to_say_where_a_payload_goes(pool: Pool) -> None:
    a, _, b, at_b = pool.pair()
    a.deadlines.stall = b.deadlines.stall = 0.1
    at_b.gate.clear()
    a.send("b", message(0), bytes(10_000_000))
    assert at_b.wait(lambda self: bool(self.asked))
    assert not at_b.wait(lambda self: bool(self.losses), 0.5)
    at_b.gate.set()
    assert at_b.wait_for_messages(1)[0][2] == bytes(10_000_000)


def test_bytes_are_counted_with_their_headers(pool: Pool) -> None:
    a, _, b, at_b = pool.pair()
    a.send("b", message(0), bytes(1000))
    a.send("b", message(1))
    at_b.wait_for_messages(2)
    assert a.drain(until())
    assert a.sent_bytes == 1000 + 2 * wire.HEADER_BYTES
    # Counted when the owner has returned from `arrived`: the next message comes after that.
    a.send("b", message(2))
    at_b.wait_for_messages(3)
    assert b.received_bytes >= 1000 + 2 * wire.HEADER_BYTES


def test_nothing_is_sent_to_one_who_is_no_member(pool: Pool) -> None:
    a, _, _, _ = pool.pair()
    assert not a.send("nobody", message(0))


def test_what_the_other_side_would_refuse_is_refused_where_it_was_made(pool: Pool) -> None:
    a, _, _, _ = pool.pair()
    with pytest.raises(WireError, match="cannot be sent"):
        a.send("b", message(0, view=-1))
    with pytest.raises(WireError, match="MESSAGE of 16777217 bytes cannot be sent: the limit is 16777216"):
        a.send("b", message(0), bytes(2**24 + 1))


def test_drain_waits_for_what_is_queued_or_for_its_peer_to_be_gone(pool: Pool) -> None:
    a = pool.exchange("a", Recorder())
    puppet = pool.puppet("p")  # accepts nobody: what is queued for it stays queued
    a.members({"p": puppet.address})
    a.send("p", message(0))
    assert not a.drain(until(0.05))
    a.members({})
    assert a.drain(until())


def test_cancel_drops_what_is_queued_for_one_peer(pool: Pool) -> None:
    at_a, at_b = Recorder(), Recorder()
    a, b = pool.exchange("a", at_a), pool.exchange("b", at_b)
    a.members({"b": (b.host, b.port)})  # b does not know a yet: all of it stays queued
    a.send("b", message(0))
    a.cancel("b")
    a.send("b", message(1))
    b.members({"a": (a.host, a.port)})
    assert at_b.wait_for_messages(1)[0][1].base == 1


def test_a_fence_drops_queued_slices_of_older_views_and_keeps_the_others_in_order(pool: Pool) -> None:
    """Messages stay: what is said in an older view may be what ends that view for the others (I5)."""
    at_a, at_b = Recorder(), Recorder()
    a, b = pool.exchange("a", at_a), pool.exchange("b", at_b)
    a.members({"b": (b.host, b.port)})
    for number, view in enumerate((1, 2, 1, 3, 2)):
        a.send("b", Header(Kind.CONTRIBUTION, view, base=number))
        a.send("b", message(10 + number, view))
    a.fence(2)
    b.members({"a": (a.host, a.port)})
    came = [header.base for _, header, _ in at_b.wait_for_messages(8)]
    assert came == [10, 1, 11, 12, 3, 13, 4, 14]
    assert a.drain(until())
    assert len(at_b.taken) == 8


def test_a_fence_keeps_out_slices_of_older_views_but_not_messages(pool: Pool) -> None:
    a, _, b, at_b = pool.pair()
    b.fence(5)
    a.send("b", slice_of(4), b"old")
    a.send("b", message(0, view=4), b"news")
    a.send("b", slice_of(5), b"new")
    assert [payload for _, _, payload in at_b.wait_for_messages(3)] == [None, b"news", b"new"]
    assert [header.kind for header in at_b.asked] == [Kind.MESSAGE, Kind.CONTRIBUTION]


def test_a_slice_that_was_being_placed_when_the_fence_came_up_is_thrown_away(pool: Pool) -> None:
    a, _, b, at_b = pool.pair()
    buffer = bytearray(3)
    at_b.where = lambda _: memoryview(buffer)
    at_b.gate.clear()
    a.send("b", slice_of(1), b"old")
    assert at_b.wait(lambda self: bool(self.asked))
    b.fence(2)
    assert b.quiesce(2, 0, until(0))
    at_b.gate.set()
    assert at_b.wait_for_messages(1)[0][2] is None
    assert buffer == bytes(3)


@pytest.mark.parametrize(("view", "base"), [(2, 0), (1, 1)], ids=["view", "base"])
def test_a_slice_that_is_half_read_when_the_fence_comes_up_leaves_its_buffer_and_is_read_to_its_end(
    pool: Pool, view: int, base: int
) -> None:
    """Of a slice that is sent twice, the second may come when the round is over (I3)."""
    exchange, owner, puppet = with_puppet(pool)
    buffer = bytearray(1000)
    owner.where = lambda header: memoryview(buffer) if header.length == 1000 else memoryview(bytearray(10))
    line, slow = puppet.connect(exchange, "a"), whole(1, b"x" * 1000)
    line.sendall(slow[:500])
    assert owner.wait(lambda self: len(self.asked) == 1)
    assert exchange.quiesce(1, 0, until(0)), "its round goes on"
    exchange.fence(view, base)
    assert exchange.quiesce(view, base, until()), "nobody waits for a slow line"
    before = bytes(buffer)
    line.sendall(slow[500:] + whole(2, bytes(10)))
    assert [payload for _, _, payload in owner.wait_for_messages(2)] == [None, bytes(10)]
    assert bytes(buffer) == before


def test_quiesce_waits_until_the_owner_has_done_with_a_slice(pool: Pool) -> None:
    a, _, b, at_b = pool.pair()
    entered, leave = threading.Event(), threading.Event()

    def add_up(_: Header) -> None:
        entered.set()
        assert leave.wait(PATIENCE)

    at_b.then = add_up
    a.send("b", slice_of(1), b"slice")
    assert entered.wait(PATIENCE)
    b.fence(2)
    assert not b.quiesce(2, 0, until(0.05))
    leave.set()
    assert b.quiesce(2, 0, until())


@pytest.mark.parametrize(("view", "base"), [(2, 0), (1, 1)], ids=["view", "base"])
def test_who_has_handed_over_a_slice_may_wait_for_others_though_a_newer_round_has_begun(
    pool: Pool, view: int, base: int
) -> None:
    """It would wait for itself, if its own slice counted as one that is being handed over (I5)."""
    a, _, b, at_b = pool.pair()
    quiet: list[bool] = []
    at_b.left_to_do = lambda: quiet.append(b.quiesce(view, base, until(0)))
    at_b.then = lambda _: b.fence(view, base)
    a.send("b", slice_of(1), b"slice")
    assert at_b.wait(lambda _: bool(quiet))
    assert quiet == [True]


def test_a_port_in_use_is_named(pool: Pool) -> None:
    a = pool.exchange("a", Recorder())
    with pytest.raises(PortInUse, match=f"port {a.port} of 127.0.0.1 is in use"):
        pool.exchange("b", Recorder(), port=a.port)


def test_an_address_that_is_not_ours_cannot_be_listened_on() -> None:
    with pytest.raises(MachineError, match=os.strerror(errno.EADDRNOTAVAIL)):
        Exchange(RUN, TOKEN, "a", Recorder(), host="192.0.2.1")


def test_nothing_is_left_after_close() -> None:
    gc.collect()
    process = psutil.Process()
    descriptors = process.num_fds()
    owners = {name: Recorder() for name in "abcd"}
    exchanges = {name: Exchange(RUN, TOKEN, name, owner) for name, owner in owners.items()}
    introduce(**exchanges)
    for name, exchange in exchanges.items():
        others = [other for other in exchanges if other != name]
        assert exchange.send_all(others, slice_of(1), bytes(3_000_000)) == 3
    for owner in owners.values():
        owner.wait_for_messages(3)
    for exchange in exchanges.values():
        exchange.close(PATIENCE)
        exchange.close(PATIENCE)
    assert threads_of_exchanges() == []
    assert process.num_fds() == descriptors


def test_close_says_which_thread_its_owner_still_holds(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    a, _, b, at_b = pool.pair()
    at_b.gate.clear()
    a.send("b", message(0), b"x")
    assert at_b.wait(lambda self: bool(self.asked))
    b.close(0.05)
    assert "mh-recv-a did not end in 0.05 s" in caplog.text
    at_b.gate.set()


def streams_between(pool: Pool, count: int) -> tuple[Exchange, Recorder, Exchange, Recorder]:
    at_a, at_b = Recorder(), Recorder()
    a, b = pool.exchange("a", at_a, streams=count), pool.exchange("b", at_b, streams=count)
    introduce(a=a, b=b)
    return a, at_a, b, at_b


def test_slices_take_several_connections_and_messages_keep_their_order_on_the_first(pool: Pool) -> None:
    a, _, _, at_b = streams_between(pool, 3)
    eventually(lambda: a.streams == 3)
    slices = [Header(Kind.COMBINED, 1, 0, number, dtype=DType.FLOAT32) for number in range(30)]
    for number, header in enumerate(slices):
        a.send("b", header, np.full(1 << 18, number, np.float32).data)
        a.send("b", message(number), b"")
    taken = at_b.wait_for_messages(60)
    words = [header.base for _, header, _ in taken if header.kind is Kind.MESSAGE]
    came = [(header.segment, payload) for _, header, payload in taken if header.kind is Kind.COMBINED]
    assert words == list(range(30))
    assert sorted(came) == [(number, np.full(1 << 18, number, np.float32).tobytes()) for number in range(30)]


def test_one_of_several_connections_that_breaks_is_dialled_again_and_the_others_stay(pool: Pool) -> None:
    a, at_a, b, at_b = streams_between(pool, 2)
    eventually(lambda: sum(connection.admitted for connection in b._incoming) == 2)
    first, second = sorted(b._incoming, key=lambda connection: connection._stream)
    second.stop()
    assert at_a.wait_for_loss("the other side closed it")
    eventually(lambda: not a.unreachable)
    assert first in b._incoming
    a.send("b", message(1), b"still here")
    assert at_b.wait_for_messages(1)[0][2] == b"still here"


def test_a_slice_waits_for_no_more_than_one_part_of_a_state(pool: Pool) -> None:
    a, _, _, at_b = pool.pair()
    at_b.gate.clear()
    for number in range(3):
        a.send("b", Header(Kind.SNAPSHOT, 1, 1, number), bytes(1 << 20))
    assert at_b.wait(lambda owner: bool(owner.asked))
    a.send("b", slice_of(1), b"slice")
    a.send("b", message(1), b"message")
    a.send("b", slice_of(1), b"slice")
    at_b.gate.set()
    kinds = [header.kind for _, header, _ in at_b.wait_for_messages(6)]
    assert kinds == [Kind.SNAPSHOT, slice_of(1).kind, Kind.MESSAGE, slice_of(1).kind, *[Kind.SNAPSHOT] * 2]
