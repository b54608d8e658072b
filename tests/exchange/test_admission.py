from __future__ import annotations

import socket
import time
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from puppets import (
    Pool,
    Puppet,
    Recorder,
    assert_still_works,
    closed_by_the_other_side,
    message,
    threads_of_exchanges,
    until,
    with_puppet,
)

from manyhands.exchange import wire
from manyhands.exchange.roster import Deadlines
from manyhands.exchange.tcp import Exchange


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token": "another token"}, "the token of b'stranger' is not ours"),
        ({"run": "run-2"}, "whoever dialled belongs to another run"),
    ],
)
def test_a_stranger_is_refused_with_one_line_and_harms_nobody(
    pool: Pool, caplog: pytest.LogCaptureFixture, options: dict[str, str], said: str
) -> None:
    a, at_a, b, at_b = pool.pair()
    assert_still_works(a, at_b)
    at_stranger = Recorder()
    stranger = pool.exchange("stranger", at_stranger, **options)
    stranger.members({"b": (b.host, b.port)})
    at_stranger.wait_for_loss("cannot reach b")
    stranger.close()
    assert len([line for line in refusals(caplog) if said in line]) >= 1
    assert all(said in line for line in refusals(caplog))
    assert at_a.losses == at_b.losses == []
    assert_still_works(a, at_b)


def test_a_listener_that_does_not_know_the_token_gets_no_message(pool: Pool) -> None:
    owner = Recorder()
    puppet = pool.puppet("p")
    exchange = pool.exchange("a", owner)
    exchange.members({"p": puppet.address})
    exchange.send("p", message(0), b"secret")
    connection, _ = puppet.listener.accept()
    with connection:
        connection.sendall(wire.MAGIC + bytes(16))
        assert connection.recv(1000)
        connection.sendall(bytes(32))
        owner.wait_for_loss("the listener's token is not ours")
        assert connection.recv(1000) == b""


def test_something_else_that_listens_at_a_members_address_is_named_as_such(pool: Pool) -> None:
    owner = Recorder()
    puppet = pool.puppet("p")
    exchange = pool.exchange("a", owner)
    exchange.members({"p": puppet.address})
    connection, _ = puppet.listener.accept()
    with connection:
        connection.sendall(b"220 mail.example.org ESMTP")
        owner.wait_for_loss("no member listens there")


def test_another_incarnation_at_the_address_is_not_taken_for_the_member(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    at_a = Recorder()
    a, b = pool.exchange("a", at_a), pool.exchange("b-again", Recorder())
    a.members({"b": (b.host, b.port)})
    at_a.wait_for_loss("cannot reach b")
    assert "b'a' dialled b'b', but here is 'b-again'" in refusals(caplog)[0]


def test_a_member_that_is_not_named_yet_waits_to_be_named(pool: Pool) -> None:
    at_a, at_b = Recorder(), Recorder()
    a, b = pool.exchange("a", at_a), pool.exchange("b", at_b)
    a.members({"b": (b.host, b.port)})
    a.send("b", message(1))
    deadline = until()
    while "mh-recv-a" not in threads_of_exchanges():
        assert time.monotonic() < deadline
    assert at_b.taken == []
    b.members({"a": (a.host, a.port)})
    assert at_b.wait_for_messages(1)[0][1].base == 1
    assert at_a.losses == []


def test_one_who_is_never_named_is_closed_in_time(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    at_a = Recorder()
    a = pool.exchange("a", at_a)
    b = pool.exchange("b", Recorder(), deadlines=Deadlines(pending=0.1))
    a.members({"b": (b.host, b.port)})
    at_a.wait_for_loss("it knows us as a member was due")
    assert "a is no member here, and was not named as one in 0.1 s" in refusals(caplog)[0]


def test_one_who_says_nothing_is_closed_in_time(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    exchange, _, puppet = with_puppet(pool, step=0.1)
    assert closed_by_the_other_side(puppet.connect_raw(exchange))
    assert "an answer to the greeting did not come within 0.1 s" in refusals(caplog)[0]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(min_size=1, max_size=300))
def test_garbage_from_a_stranger_harms_nobody(garbage_pair: _Pair, garbage: bytes) -> None:
    a, at_a, b, at_b, puppet = garbage_pair
    connection = puppet.connect_raw(b)
    connection.sendall(garbage)
    with suppress(OSError):  # it may be refused, and reset, already
        connection.shutdown(socket.SHUT_WR)
    assert closed_by_the_other_side(connection)
    connection.close()
    assert_still_works(a, at_b)
    assert at_a.losses == at_b.losses == []


_Pair = tuple[Exchange, Recorder, Exchange, Recorder, Puppet]


@pytest.fixture
def garbage_pair(pool: Pool) -> _Pair:
    return (*pool.pair(), pool.puppet("p"))
