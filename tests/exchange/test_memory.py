"""What members of one host read where it lies."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from puppets import PATIENCE, RUN, Pool, Recorder, introduce

from manyhands.errors import WireError
from manyhands.exchange import wire
from manyhands.exchange.memory import Memory, Neighbour, this_machine
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import DType, Header, Kind

ROUND = Header(Kind.COMBINED, 1, 2, segment=0, dtype=DType.FLOAT32, subset=0b11)
FLOAT32 = np.dtype(np.float32)
N = 100_000


@pytest.fixture(autouse=True)
def memory() -> Memory:
    return Memory(2, 4 * N, 3, "here")


@pytest.fixture(autouse=True)
def of_b() -> Memory:
    return Memory(2, 4 * N, 3, "here")


@pytest.fixture
def a_to_b(pool: Pool, memory: Memory, of_b: Memory) -> tuple[Exchange, Recorder]:
    """The exchange of a, which has `memory`, and the owner of b's, which has one as well."""
    at_b = Recorder()
    a, b = pool.exchange("a", Recorder()), pool.exchange("b", at_b)
    a.lend(memory)
    b.lend(of_b)
    introduce(a=a, b=b)
    return a, at_b


def filled(memory: Memory, header: Header = ROUND) -> memoryview:
    vector = memory.vector(N, FLOAT32)
    vector[:] = np.arange(N)
    memory.publish(header)
    return vector.data


def test_a_slice_in_shared_memory_is_copied_from_there_and_not_sent(
    a_to_b: tuple[Exchange, Recorder], memory: Memory
) -> None:
    a, at_b = a_to_b
    payload = filled(memory)
    assert a.send("b", ROUND, payload)
    ((_, header, came),) = at_b.wait_for_messages(1)
    assert header.lies_at > 0
    assert came == bytes(payload)
    assert a.neighbours == 1


def test_an_owner_may_use_a_slice_where_it_lies(a_to_b: tuple[Exchange, Recorder], memory: Memory) -> None:
    a, at_b = a_to_b
    at_b.uses_loans = True
    payload = filled(memory)
    a.send("b", ROUND, payload)
    ((_, _, came),) = at_b.wait_for_messages(1)
    assert came == bytes(payload)


def test_a_slice_whose_memory_holds_something_else_by_now_is_dropped(
    a_to_b: tuple[Exchange, Recorder], memory: Memory
) -> None:
    a, at_b = a_to_b
    at_b.gate.clear()
    a.send("b", ROUND, filled(memory))
    assert at_b.wait(lambda self: bool(self.asked))
    memory.withdraw(Kind.COMBINED)
    at_b.gate.set()
    assert at_b.wait_for_messages(1)[0][2] is None


def test_what_lies_elsewhere_and_what_is_no_slice_is_sent(
    a_to_b: tuple[Exchange, Recorder], memory: Memory
) -> None:
    a, at_b = a_to_b
    a.send("b", ROUND, np.ones(N, np.float32).data)
    a.send("b", Header(Kind.WHOLE, 1, 2, dtype=DType.FLOAT32), filled(memory))
    taken = at_b.wait_for_messages(2)
    assert [header.lies_at for _, header, _ in taken] == [0, 0]
    assert [len(payload or b"") for _, _, payload in taken] == [4 * N, 4 * N]


def test_who_shares_no_memory_is_sent_everything(pool: Pool, memory: Memory) -> None:
    a, _, _, at_b = pool.pair()
    a.lend(memory)  # too late for the connection that stands
    a.send("b", ROUND, filled(memory))
    assert at_b.wait_for_messages(1)[0][1].lies_at == 0


def test_a_slice_beyond_the_memory_ends_the_connection(pool: Pool, memory: Memory, of_b: Memory) -> None:
    at_b = Recorder()
    b = pool.exchange("b", at_b)
    b.lend(of_b)
    puppet = pool.puppet("p")
    b.members({"p": puppet.address})
    connection = puppet.connect(b, "b", offer=memory.offer)
    beyond = Header(Kind.COMBINED, 1, 2, length=8, lies_at=1 << 40)
    connection.sendall(wire.pack(beyond, wire.run_hash(RUN)))
    at_b.wait_for_loss("expected within")


def test_a_slice_in_a_memory_that_was_never_offered_ends_the_connection(pool: Pool) -> None:
    at_b = Recorder()
    b = pool.exchange("b", at_b)
    puppet = pool.puppet("p")
    b.members({"p": puppet.address})
    header = Header(Kind.COMBINED, 1, 2, length=8, lies_at=1)
    puppet.connect(b, "b").sendall(wire.pack(header, wire.run_hash(RUN)))
    at_b.wait_for_loss("cannot be read here")


def test_a_stamp_tells_rounds_views_kinds_and_sets_apart(memory: Memory) -> None:
    memory.publish(ROUND)
    neighbour = Neighbour(memory.offer, memory.offer)
    others = [
        Header(Kind.COMBINED, 2, 2, subset=0b11),
        Header(Kind.COMBINED, 1, 3, subset=0b11),
        Header(Kind.COMBINED, 1, 2, subset=0b01),
        Header(Kind.COMBINED, 1, 2, subset=0b11, segment=1),
        Header(Kind.CONTRIBUTION, 1, 2, subset=0b11),
    ]
    assert neighbour.has(ROUND)
    assert not any(neighbour.has(other) for other in others)


def changed(offer: bytes, at: int, value: int) -> bytes:
    numbers = list(struct.unpack("<QQQQ", offer[:32]))
    numbers[at] = value
    return struct.pack("<QQQQ", *numbers) + offer[32:]


def test_an_offer_of_another_host_is_not_read(memory: Memory, of_b: Memory) -> None:
    reading, writing = os.pipe()
    _, _, size, _ = struct.unpack("<QQQQ", memory.offer[:32])
    try:
        for offer in (
            b"",
            changed(memory.offer, 0, 1 << 40),
            changed(memory.offer, 1, reading),
            changed(memory.offer, 2, size + 1),
            changed(memory.offer, 3, 1 << 60),
            of_b.offer[:32] + memory.offer[32:],
            memory.offer[:-1] + bytes([memory.offer[-1] ^ 1]),
        ):
            with pytest.raises(WireError, match="memory"):
                Neighbour(offer, memory.offer)
        assert Neighbour(memory.offer, memory.offer).has(ROUND) is False
    finally:
        os.close(reading)
        os.close(writing)


def test_who_names_another_part_of_this_machine_is_on_another_host(memory: Memory) -> None:
    elsewhere = Memory(1, 4, 1, this_machine("elsewhere"))
    assert this_machine("elsewhere") not in ("", this_machine())
    with pytest.raises(WireError, match="another host's"):
        Neighbour(memory.offer, elsewhere.offer)


def test_a_combined_slice_of_each_rank_has_a_stamp_of_its_own_but_for_those_far_beyond(
    memory: Memory,
) -> None:
    neighbour = Neighbour(memory.offer, memory.offer)
    first, second, beyond = (Header(Kind.COMBINED, 1, 2, 0, slice_, length=8) for slice_ in (0, 1, 64))
    for header in (first, second, beyond):
        memory.publish(header)
    memory.withdraw_combined(0, 1)
    assert (neighbour.has(first), neighbour.has(second)) == (True, False)
    with pytest.raises(WireError, match="cannot lie in shared memory"):
        neighbour.loan(beyond, 4096)


def test_a_neighbour_can_write_nothing_and_the_owner_cannot_take_it_away(memory: Memory) -> None:
    loan = Neighbour(memory.offer, memory.offer).loan(Header(Kind.COMBINED, 1, length=8), 4096)
    assert loan.payload.readonly
    _, descriptor, *_ = struct.unpack("<QQQQ", memory.offer[:32])
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)


OWNER = """
import sys, time, numpy as np
from manyhands.exchange.memory import Memory
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import Header, Kind
memory = Memory(1, 4000, 1, "here")
memory.vector(1000, np.dtype(np.float32))[:] = 7
memory.publish(Header(Kind.COMBINED, 1, 2))
sys.stdout.buffer.write(memory.offer)
sys.stdout.flush()
sys.stdin.read()
"""


def test_what_a_killed_process_has_lent_can_be_read_on_and_has_no_name_to_be_left_over() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        offer = owner.stdout.read(80)
        before = set(os.listdir("/dev/shm"))
        neighbour = Neighbour(offer, offer)
        owner.send_signal(signal.SIGKILL)
        owner.wait(PATIENCE)
        header = Header(Kind.COMBINED, 1, 2, length=4000)
        loan = neighbour.loan(header, 4096)
        assert loan.stands
        assert np.frombuffer(loan.payload, np.float32).tolist() == [7.0] * 1000
        with pytest.raises(WireError, match="cannot be read"):
            Neighbour(offer, offer)
        assert set(os.listdir("/dev/shm")) <= before
    finally:
        owner.kill()
        owner.communicate()


def test_a_forked_child_does_not_keep_the_memory_of_a_neighbour() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        offer = owner.stdout.read(80)
        neighbour = Neighbour(offer, offer)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "r--s" in line]
            links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
            os.write(writing, repr([maps, links]).encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as file:
            told = file.read().decode()
        os.waitpid(child, 0)
        assert "memfd" not in told, told
        assert neighbour.has(Header(Kind.COMBINED, 1, 2))
    finally:
        owner.kill()
        owner.communicate()


def test_memory_that_is_not_there_is_refused_before_any_of_it_is_used() -> None:
    with pytest.raises(OSError, match=r"1073741824 MB are needed, and [0-9]+ MB are available"):
        Memory(1, 1 << 50, 1, "here")
