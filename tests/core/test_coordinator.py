"""The hub's decisions."""

from __future__ import annotations

from manyhands._version import __version__
from manyhands.core.coordinator import Connected, Coordinator, Disconnected, Send, Ticked
from manyhands.core.messages import Evicted, Freeze, Hello, Message, Opened, Ready, Refuse, Version


def hello(name: str, software: str = __version__) -> Connected:
    return Connected(Hello("r", name, name, 1, "h", 1, software, ready=Ready((), "s")))


def sent(actions: list[object], kind: type[Message]) -> list[str]:
    return [a.incarnation for a in actions if isinstance(a, Send) and isinstance(a.message, kind)]


def test_the_first_view_opens_when_all_who_are_expected_are_ready() -> None:
    hub = Coordinator("r", 2)
    assert not sent([*hub.handle(hello("0"), 0.0)], Opened)
    assert sent([*hub.handle(hello("1"), 0.0)], Opened) == ["0", "1"]


def test_a_worker_with_other_software_is_refused() -> None:
    assert sent([*Coordinator("r").handle(hello("0", "0.0"), 0.0)], Refuse) == ["0"]


def test_a_broken_connection_costs_the_place_after_the_grace() -> None:
    hub = Coordinator("r", 2)
    for name in "01":
        hub.handle(hello(name), 0.0)
    hub.handle(Disconnected("1"), 1.0)
    assert not sent([*hub.handle(Ticked(), 1.2)], Freeze)
    assert sent([*hub.handle(Ticked(), 1.4)], Freeze) == ["0"]


def test_a_silent_worker_is_evicted_after_its_lease() -> None:
    hub = Coordinator("r", 1, 10.0)
    hub.handle(hello("0"), 0.0)
    assert sent([*hub.handle(Ticked(), 10.5)], Evicted) == ["0"]


def test_a_restored_hub_is_as_it_was() -> None:
    hub = Coordinator("r", 1)
    hub.handle(hello("0"), 0.0)
    again = Coordinator.restore(hub.snapshot())
    assert (again.view, again.version, again.snapshot()) == (hub.view, Version(0, 0), hub.snapshot())
