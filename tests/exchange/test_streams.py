"""Several connections to one member."""

from __future__ import annotations

from typing import Any

from manyhands.exchange.outgoing import Message
from manyhands.exchange.streams import Streams
from manyhands.exchange.wire import Header, Kind


class Link:
    """One connection; `queue` is what it was given."""

    def __init__(self, _: int) -> None:
        self.stands = self.unreachable = False
        self.queue: list[Message] = []

    @property
    def waiting_bytes(self) -> int:
        return sum(message.payload.nbytes for message in self.queue)

    def put(self, message: Message) -> None:
        self.queue.append(message)


def three() -> tuple[Streams, Any]:
    streams = Streams(("b", 1), Link, 3)  # type: ignore[arg-type]
    return streams, streams.links


def slice_of(nbytes: int) -> Message:
    return Message(Header(Kind.COMBINED, 1), b"", None, memoryview(bytes(nbytes)))


def test_slices_are_not_queued_where_no_connection_stands_but_on_the_first() -> None:
    """What waits for a connection that cannot be made is dropped with each attempt."""
    streams, (first, second, third) = three()
    second.stands = True
    for _ in range(4):
        streams.put(slice_of(10))
    assert [len(link.queue) for link in (first, second, third)] == [2, 2, 0]


def test_a_member_is_reachable_though_a_further_connection_cannot_be_made() -> None:
    streams, (first, _, third) = three()
    third.unreachable = True
    assert not streams.unreachable
    first.unreachable = True
    assert streams.unreachable


def test_a_part_of_a_state_goes_where_the_least_waits_and_a_message_on_the_first() -> None:
    streams, (first, second, third) = three()
    second.stands = third.stands = True
    for _ in range(2):
        streams.put(Message(Header(Kind.MESSAGE, 1), b"", None, memoryview(bytes(10))))
    for _ in range(2):
        streams.put(Message(Header(Kind.SNAPSHOT, 1), b"", None, memoryview(bytes(10))))
    assert [len(link.queue) for link in (first, second, third)] == [2, 1, 1]
