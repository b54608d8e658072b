"""A slice that arrives, as the exchange tells it."""

from manyhands.exchange.wire import Header
from manyhands.worker.part import Part


def arrive(to: Part, peer: str, header: Header, payload: memoryview) -> None:
    left_to_do = to.arrived(peer, header, payload)
    assert left_to_do is not None
    left_to_do()
