from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import psutil
import pytest
from puppets import (
    PATIENCE,
    RUN,
    TOKEN,
    Pool,
    Recorder,
    assert_still_works,
    assert_works_again,
    closed_by_the_other_side,
    eventually,
    message,
    on_the_wire,
    slice_of,
    until,
    whole,
    with_puppet,
)

from manyhands.exchange import wire
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import Header, Kind


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("magic: b'GET '", b"GET / HTTP/1.1\r\n" + bytes(100)),
        (
            "length: 16777217 bytes, expected at most 16777216",
            on_the_wire(Header(Kind.MESSAGE, 1, length=2**24 + 1)),
        ),
        ("expected at most 67108864", on_the_wire(slice_of(1, 2**62))),
        ("payload checksum: 0x", whole(1, b"payload")[:-1] + b"!"),
        ("expected 0x", wire.pack(message(0), wire.run_hash("another run"))),
    ],
)
def test_a_malformed_message_ends_that_connection_with_one_line_and_harms_nobody(
    pool: Pool, caplog: pytest.LogCaptureFixture, said: str, sent: bytes
) -> None:
    a, owner, puppet = with_puppet(pool)
    at_b = Recorder()
    b = pool.exchange("b", at_b)
    addresses = {"a": (a.host, a.port), "b": (b.host, b.port), "p": puppet.address}
    a.members(addresses)
    b.members({"a": addresses["a"]})
    connection = puppet.connect(a, "a")
    connection.sendall(sent)
    assert closed_by_the_other_side(connection)
    why = owner.wait_for_loss("lost the connection from p")
    assert said in why
    assert [record.getMessage() for record in caplog.records if said in record.getMessage()] == [why]
    assert owner.taken == []
    assert_still_works(a, at_b)


@pytest.mark.parametrize("kind", [Kind.MESSAGE, Kind.SNAPSHOT])
def test_a_payload_over_the_limit_is_refused_before_the_owner_makes_room_for_it(
    pool: Pool, kind: Kind
) -> None:
    exchange, owner, puppet = with_puppet(pool)
    puppet.connect(exchange, "a").sendall(on_the_wire(Header(kind, 1, length=wire.LIMITS[kind] + 1)))
    assert f"expected at most {wire.LIMITS[kind]} for {kind.name}" in owner.wait_for_loss("from p")
    assert owner.asked == []


def test_a_state_with_another_checksum_than_it_was_sent_with_does_not_arrive(pool: Pool) -> None:
    exchange, owner, puppet = with_puppet(pool)
    state = Header(Kind.SNAPSHOT, 1, length=5, checksum=wire.payload_hash(b"state"))
    puppet.connect(exchange, "a").sendall(on_the_wire(state) + b"stale")
    owner.wait_for_loss("payload checksum")
    assert owner.taken == []


def test_a_slice_of_another_length_than_its_place_ends_the_connection(pool: Pool) -> None:
    exchange, owner, puppet = with_puppet(pool)
    owner.where = lambda _: memoryview(bytearray(8))
    puppet.connect(exchange, "a").sendall(whole(1, bytes(12)))
    assert "length: 12 bytes, expected 8" in owner.wait_for_loss("from p")


def test_an_owner_that_fails_is_heard_of_and_only_that_connection_ends(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    a, at_a, b, at_b = pool.pair()
    at_b.where = lambda header: memoryview(bytearray(header.length // header.base))
    a.send("b", message(0), b"x")
    at_b.wait_for_loss("ZeroDivisionError")
    assert any(record.exc_info for record in caplog.records)
    at_a.wait_for_loss("lost the connection to b")
    assert_works_again(a, at_b)
    b.send("a", message(5))
    assert at_a.wait_for_messages(1)[0][1].base == 5


def test_a_peer_that_stops_in_the_middle_of_a_message_is_closed_with_a_sentence(pool: Pool) -> None:
    exchange, owner, puppet = with_puppet(pool, stall=0.2)
    puppet.connect(exchange, "a").sendall(whole(1, bytes(1000))[:-1])
    owner.wait_for_loss("it stopped in the middle of a message and said nothing for 0.")


def test_a_peer_that_breaks_off_in_the_middle_of_a_message_is_lost_once(pool: Pool) -> None:
    exchange, owner, puppet = with_puppet(pool)
    connection = puppet.connect(exchange, "a")
    connection.sendall(whole(1, bytes(1000))[:-1])
    connection.close()
    owner.wait_for_loss("it broke in the middle of a message")
    assert len([why for _, why in owner.losses if "from p" in why]) == 1
    assert owner.taken == []


def test_a_peer_that_dials_again_takes_over_from_its_older_connection(pool: Pool) -> None:
    exchange, owner, puppet = with_puppet(pool)
    first = puppet.connect(exchange, "a")
    first.sendall(whole(1, b"first"))
    owner.wait_for_messages(1)
    second = puppet.connect(exchange, "a")
    assert closed_by_the_other_side(first)
    owner.wait_for_loss("lost the connection from p")
    second.sendall(whole(1, b"second"))
    assert [payload for _, _, payload in owner.wait_for_messages(2)] == [b"first", b"second"]


def thread_named(name: str) -> threading.Thread:
    return next(thread for thread in threading.enumerate() if thread.name == name)


def test_a_peer_taken_out_of_the_members_ends_its_threads_at_once_and_is_not_lost(pool: Pool) -> None:
    exchange, owner, puppet = with_puppet(pool)
    connection = puppet.connect(exchange, "a")
    connection.sendall(whole(1, bytes(1000))[:-1])
    assert owner.wait(lambda self: bool(self.asked))
    receiver, sender = thread_named("mh-recv-p"), thread_named("mh-send-p")
    exchange.members({})
    receiver.join(PATIENCE)
    sender.join(PATIENCE)
    assert not receiver.is_alive()
    assert not sender.is_alive()
    assert closed_by_the_other_side(connection)
    assert owner.losses == []
    assert owner.taken == []


def test_a_broken_connection_is_lost_on_both_sides_and_dialled_again(pool: Pool) -> None:
    a, at_a, b, at_b = pool.pair()
    assert_still_works(a, at_b)
    b.send("a", message(0))
    at_a.wait_for_messages(1)
    b.members({})
    at_a.wait_for_loss("lost the connection to b")
    at_a.wait_for_loss("lost the connection from b")
    b.members({"a": (a.host, a.port)})
    assert_works_again(a, at_b)
    assert at_b.losses == []


def test_a_member_that_comes_up_late_is_lost_once_and_reached_by_itself(pool: Pool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        address = placeholder.getsockname()
    at_a, at_b = Recorder(), Recorder()
    a = pool.exchange("a", at_a)
    a.members({"b": address})
    at_a.wait_for_loss("cannot reach b at 127.0.0.1")
    assert a.unreachable == ("b",)
    b = pool.exchange("b", at_b, port=address[1])
    b.members({"a": (a.host, a.port)})
    assert_works_again(a, at_b)
    assert a.unreachable == ()
    assert len(at_a.losses) == 1


def test_what_was_queued_when_a_link_broke_is_dropped_before_the_owner_hears_of_it(pool: Pool) -> None:
    a, at_a, b, at_b = pool.pair()
    assert_still_works(a, at_b)
    at_b.gate.clear()
    for _ in range(50):
        a.send("b", message(1), bytes(1_000_000))
    drained: list[bool] = []
    told = at_a.lost

    def lost(peer: str, why: str) -> None:
        if "to b" in why:
            drained.append(a.drain(until(0)))
        told(peer, why)

    at_a.lost = lost  # type: ignore[method-assign]
    b.members({})
    at_a.wait_for_loss("lost the connection to b")
    assert drained == [True]


CHILD = """
import os, signal, sys
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import Header, Kind

class Owner:
    def place(self, peer, header, loan): return None
    def arrived(self, peer, header, payload): pass
    def lost(self, peer, why): pass
    def failed(self, error): pass

port, token, run, forks = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "forks"
exchange = Exchange(run, token, "child", Owner())
print(exchange.port, flush=True)
exchange.members({"a": ("127.0.0.1", port)})
exchange.send("a", Header(Kind.WHOLE, 1), bytes(50_000_000))
sys.stdin.readline()
if forks:
    child = os.fork()
    if child == 0:
        signal.pause()
    print(child, flush=True)
signal.pause()
"""


def start_child(exchange: Exchange, *, forks: bool = False) -> tuple[subprocess.Popen[str], int]:
    arguments = [str(exchange.port), TOKEN, RUN, "forks" if forks else ""]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    return child, int(child.stdout.readline())


def end_child(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait(PATIENCE)
    for stream in (child.stdin, child.stdout):
        assert stream is not None
        stream.close()


def test_a_peer_killed_in_the_middle_of_a_message_is_lost_at_once(pool: Pool) -> None:
    owner = Recorder()
    exchange = pool.exchange("a", owner)
    child, port = start_child(exchange)
    try:
        owner.gate.clear()
        exchange.members({"child": ("127.0.0.1", port)})
        assert owner.wait(lambda self: bool(self.asked))
        child.send_signal(signal.SIGKILL)
        owner.wait_for_loss("lost the connection to child")
        owner.gate.set()
        owner.wait_for_loss("lost the connection from child")
        assert owner.taken == []
    finally:
        end_child(child)


def test_a_killed_peer_is_lost_at_once_even_if_a_process_forked_from_it_lives_on(pool: Pool) -> None:
    owner = Recorder()
    exchange = pool.exchange("a", owner)
    child, port = start_child(exchange, forks=True)
    orphan = 0
    try:
        exchange.members({"child": ("127.0.0.1", port)})
        owner.wait_for_messages(1)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("go on\n")
        child.stdin.flush()
        orphan = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        owner.wait_for_loss("lost the connection from child")
        owner.wait_for_loss("lost the connection to child")
        assert psutil.pid_exists(orphan)
    finally:
        if orphan:
            os.kill(orphan, signal.SIGKILL)
        end_child(child)


def received(connection: socket.socket, size: int) -> bytes:
    got = b""
    connection.settimeout(PATIENCE)
    while len(got) < size:
        part = connection.recv(size - len(got))
        assert part
        got += part
    return got


def test_the_memory_of_a_useless_slice_is_given_back_while_it_is_being_sent(pool: Pool) -> None:
    exchange, _, puppet = with_puppet(pool, stall=1.0)
    connection = puppet.answer()
    half_sent, queued, useful = (Header(Kind.COMBINED, 1, base, 4) for base in (1, 2, 3))
    memory = bytearray(b"before" * (1 << 20))
    for header in (half_sent, queued):
        assert exchange.send("p", header, memory)
    assert exchange.send("p", useful, b"useful")
    eventually(lambda: exchange.sent_bytes > 0)
    assert [exchange.carries("p", header) for header in (half_sent, queued)] == [True, True]
    assert exchange.retire(lambda header: header.base < 3, until())
    assert [exchange.carries("p", header) for header in (half_sent, queued)] == [True, False]
    memory[:] = b"behind" * (1 << 20)
    size = wire.HEADER_BYTES + len(memory)
    came = received(connection, size)
    header = wire.unpack(came[: wire.HEADER_BYTES], wire.run_hash(RUN))
    assert (header.base, header.checksum) == (1, wire.payload_hash(came[wire.HEADER_BYTES :]))
    assert came.endswith(b"before")
    assert received(connection, wire.HEADER_BYTES + 6).endswith(b"useful")
    assert exchange.drain(until())
    assert not exchange.carries("p", half_sent)


def test_an_owner_that_fails_on_a_message_is_told_so_and_that_connection_ends(pool: Pool) -> None:
    a, _, _, at_b = pool.pair()

    def fails(header: Header) -> memoryview:
        raise KeyError(header.base)

    at_b.where = fails
    a.send("b", message(7))
    at_b.wait_for_loss("its message could not be taken: KeyError: 7")
    assert [repr(error) for error in at_b.failures] == ["KeyError(7)"]


def test_a_sender_that_fails_as_it_never_should_is_told_to_the_owner(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, at_a, _, _ = pool.pair()

    def fails(*_: object) -> bytes:
        raise TypeError("no bytes")

    monkeypatch.setattr(wire, "seal", fails)
    a.send("b", message(7))
    assert at_a.wait(lambda self: bool(self.failures))
    assert [repr(error) for error in at_a.failures] == ["TypeError('no bytes')"]


@pytest.mark.parametrize("address", [("x" * 100 + ".", 1), ("127.0.0.1", 1 << 20), (None, "none")])
def test_a_member_whose_address_is_none_is_a_member_that_cannot_be_reached(
    pool: Pool, address: tuple[str, int]
) -> None:
    owner = Recorder()
    pool.exchange("a", owner).members({"p": address})
    owner.wait_for_loss("cannot reach p")
    assert owner.failures == []


def test_a_member_whose_name_is_too_long_for_the_handshake_cannot_be_reached(pool: Pool) -> None:
    owner, puppet = Recorder(), pool.puppet("p")
    pool.exchange("a", owner).members({"p" * 300: puppet.address})
    connection, _ = puppet.listener.accept()
    with connection:
        connection.sendall(wire.MAGIC + bytes(16))
        owner.wait_for_loss("over 128 bytes long")
    assert owner.failures == []


def test_a_slice_counts_as_bytes_that_move_while_it_comes_in_and_a_message_does_not(pool: Pool) -> None:
    exchange, owner, puppet = with_puppet(pool)
    connection = puppet.connect(exchange, "a")
    connection.sendall(on_the_wire(Header(Kind.MESSAGE, 1, length=4, checksum=wire.payload_hash(b"word"))))
    connection.sendall(b"word")
    owner.wait_for_messages(1)
    assert (exchange.received_bytes, exchange.received_bulk_bytes) == (wire.HEADER_BYTES + 4, 0)
    connection.sendall(whole(1, b"payload")[:-3])
    connection.shutdown(socket.SHUT_WR)
    owner.wait_for_loss("it broke in the middle of a message")
    assert exchange.received_bulk_bytes in (0, 4)
