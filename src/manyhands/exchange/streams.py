"""The connections to one member: one, or several where one alone does not fill a long line."""

from __future__ import annotations

from collections.abc import Callable

from manyhands.exchange.outgoing import Message, Outgoing
from manyhands.exchange.roster import Address
from manyhands.exchange.wire import Header, Kind


class Streams:
    """What `Outgoing` does, over so many of them; `open` makes the one of a number, and starts it.

    Messages keep their order, on the first. A slice, or a part of a state, goes where the least waits, there
    or on another that stands; nothing depends on the order in which they come. All but `grow` return at once;
    all are used under the roster's lock.
    """

    def __init__(self, address: Address, open: Callable[[int], Outgoing], count: int) -> None:
        self.address = address
        self._open = open
        self._links = [open(0)]
        self.grow(count)

    def grow(self, count: int) -> None:
        """As many connections as that, or more."""
        self._links += [self._open(number) for number in range(len(self._links), count)]

    @property
    def is_read(self) -> bool | None:
        """The peer reads our memory; None before it has been connected."""
        return self._links[0].is_read

    @property
    def unreachable(self) -> bool:
        """The first connection broke, or could not be made, and does not stand again yet."""
        return self._links[0].unreachable

    @property
    def idle(self) -> bool:
        """Everything queued has been handed to the kernel, or dropped."""
        return all(link.idle for link in self._links)

    @property
    def links(self) -> tuple[Outgoing, ...]:
        """The connections, the first one first."""
        return tuple(self._links)

    def carries(self, header: Header) -> bool:
        """This very message is queued, or being sent."""
        return any(link.carries(header) for link in self._links)

    def put(self, message: Message) -> None:
        links = self._links[:1]
        if message.header.kind is not Kind.MESSAGE:
            links += [link for link in self._links[1:] if link.stands]
        min(links, key=lambda link: link.waiting_bytes).put(message)

    def drop(self) -> None:
        for link in self._links:
            link.drop()

    def fence(self, view: int) -> None:
        for link in self._links:
            link.fence(view)

    def retire(self, useless: Callable[[Header], bool]) -> bool:
        done = [link.retire(useless) for link in self._links]  # each is asked
        return all(done)

    def stop(self) -> None:
        for link in self._links:
            link.stop()
