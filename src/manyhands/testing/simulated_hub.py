"""A hub process of a simulation: the real coordinator, its connections, and its journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from manyhands.core.checkpoints import Plan as KeepingPlan
from manyhands.core.coordinator import Coordinator
from manyhands.core.decisions import (
    Close,
    Compared,
    Connected,
    Disconnected,
    End,
    Event,
    Journal,
    Received,
    Restored,
    Send,
    Ticked,
    Undone,
    VersionRecord,
    lasts,
)
from manyhands.core.messages import Followed, Hello, ToHub, ToWorker, Version
from manyhands.testing.network import Clock, Cuts, Stream

LEASE = 2.0
AWAY = 20.0  # a run is over before the ten minutes of a real hub are


class Caller(Protocol):
    """The worker's end of a connection."""

    def heard(self, link: Link, message: ToWorker) -> None: ...
    def closed(self, link: Link) -> None: ...


@dataclass(eq=False)
class Link:
    """A control connection; `open` as the worker sees it. `answered`: when a ping last got through."""

    caller: Caller
    incarnation: str
    hub: SimulatedHub
    up: Stream
    down: Stream
    answered: float
    open: bool = True
    spoken: bool = False

    def say(self, message: ToHub) -> None:
        self.up.send(lambda: self.hub.hear(self, message))

    def tell(self, message: ToWorker) -> None:
        def deliver() -> None:
            if self.open:
                self.spoken = True
                self.caller.heard(self, message)

        self.down.send(deliver)

    def close(self) -> None:
        """From the worker's end: the hub hears of it behind what was said."""
        if self.open:
            self.open = False
            self.up.send(lambda: self.hub.lose(self))

    def end(self) -> None:
        """From the hub's end."""

        def deliver() -> None:
            if self.open:
                self.open = False
                self.caller.closed(self)

        self.down.send(deliver)


class Watcher(Protocol):
    """Who checks what a hub decides."""

    clock: Clock
    cuts: Cuts

    def note(self, *what: object) -> None: ...
    def check(self, holds: bool, what: str) -> None: ...
    def decided(self, hub: SimulatedHub, event: Event, before: Version) -> None: ...


@dataclass(eq=False)
class SimulatedHub:
    """At one place, from its start to its end; killed, it may come back with its journal.

    `ended` is how the run ended for it; `reports` are the newest version and digest of each incarnation;
    `recorded` are the versions in its journal, and who made them.
    """

    world: Watcher
    place: str
    coordinator: Coordinator
    keeping: KeepingPlan | None
    remembers: int
    up: bool = True
    ended: str = ""
    asleep_until: float = 0.0
    links: dict[str, Link] = field(default_factory=dict)
    reports: dict[str, tuple[Version, str]] = field(default_factory=dict)
    recorded: dict[Version, tuple[str, ...]] = field(default_factory=dict)
    _journal: bytes = b""
    _lasting: bytes = b""  # what is on the disk of it for certain
    _in_it: frozenset[Version] = frozenset()  # of `recorded`

    def __post_init__(self) -> None:
        self._prepare()

    def _prepare(self) -> None:
        self.coordinator.checkpoints.plan = self.keeping
        self.coordinator.membership.remembered = self.remembers
        self.coordinator.membership.away = AWAY

    @property
    def serves(self) -> bool:
        """It decides over somebody."""
        return self.up and not self.ended and self.coordinator.serves(self.coordinator.run) > 0

    # --- its connections ---------------------------------------------------------------------------

    def hear(self, link: Link, message: ToHub) -> None:
        if not self.up:
            link.end()
        elif isinstance(message, Hello):
            if (old := self.links.get(link.incarnation)) is not None:
                old.end()
            self.links[link.incarnation] = link
            self.decide(Connected(message))
        elif self.links.get(link.incarnation) is link:
            self.decide(Received(link.incarnation, message))
        else:  # it was opened to the process before
            link.end()

    def lose(self, link: Link) -> None:
        if self.up and self.links.get(link.incarnation) is link:
            del self.links[link.incarnation]
            self.decide(Disconnected(link.incarnation))

    def compare(self, followed: Followed) -> int:
        """The answer to who follows another hub: an epoch."""
        self.decide(Compared(followed))
        return self.coordinator.serves(followed.run)

    def tick(self) -> None:
        if self.up and self.world.clock.now >= self.asleep_until:
            self.decide(Ticked())

    def decide(self, event: Event) -> None:
        if not isinstance(event, Ticked):
            self.world.note(f"{self.place} <-", event)
        before = self.coordinator.version
        actions = self.coordinator.handle(event, self.world.clock.now)
        self.world.decided(self, event, before)
        for action in actions:
            match action:
                case Send(incarnation, message):
                    self.world.note(incarnation, f"<~ {self.place}", message)
                    if (receiver := self.links.get(incarnation)) is not None:
                        receiver.tell(message)
                case Close(incarnation):
                    if (closed := self.links.pop(incarnation, None)) is not None:
                        closed.end()
                case Journal(VersionRecord(version, _, contributions)):
                    self.recorded[version] = tuple(c.incarnation for c in contributions)
                case Journal(Undone(version)):
                    self.recorded.pop(version, None)
                case Journal(Restored(version)):
                    self.recorded = {v: w for v, w in self.recorded.items() if v.number <= version.number}
                case End(ok, why):
                    again = self.ended and not self.coordinator.superseded
                    self.world.check(not again, f"{self.place} ends a run that had {self.ended}: {why}")
                    stopped = self.coordinator.state == "stopped"
                    self.ended = self.ended or ("stopped" if stopped else "finished" if ok else "lost")
                case _:
                    pass
        if any(isinstance(action, Send) and lasts(action.message) for action in actions):
            self._lasting, self._in_it = self.coordinator.snapshot(), frozenset(self.recorded)
        if self.coordinator.superseded and self.up:
            self.ended = "superseded"
            self._stop()

    # --- its life ----------------------------------------------------------------------------------

    def kill(self) -> None:
        """`kill -9`."""
        if self.up:
            self.world.note(f"KILL {self.place}")
            self._journal = self.coordinator.snapshot()
            self._stop()

    def lose_power(self) -> None:
        """Its machine does, and the journal has lost its end."""
        if self.up and self._lasting:
            self.world.note(f"DARK {self.place}")
            self._journal = self._lasting
            self.recorded = {version: who for version, who in self.recorded.items() if version in self._in_it}
            self._stop()

    def _stop(self) -> None:
        self.up = False
        for link in self.links.values():
            link.end()
        self.links = {}

    def revive(self) -> None:
        """It comes back with its journal (I7)."""
        if not self.up and not self.ended:
            self.world.note(f"START {self.place} again")
            gather = self.coordinator.gather
            self.coordinator, self.up = Coordinator.restore(self._journal), True
            self.coordinator.gather = gather
            self._prepare()

    def sleep(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT so much later: its connections stay."""
        self.world.note(f"STOP {self.place} for {seconds:.1f} s")
        self.asleep_until = max(self.asleep_until, self.world.clock.now + seconds)
