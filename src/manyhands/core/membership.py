"""Who is in: the incarnations the hub has seen, the view, and who of them still counts as alive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from typing import Literal

import msgspec

from manyhands.core.decisions import Action, Note
from manyhands.core.messages import Beat, Hello, Version, View

WorkerState = Literal["joining", "ready", "healing", "member", "lost", "left"]
LIVE, GONE = ("joining", "ready", "healing", "member"), ("lost", "left")
REMEMBERED = 32
"""Incarnations that are gone, the last ones heard of: for people to look at."""

PLACE_DIGITS = 9
"""Of a name that is a number, and a place; a longer one may be a time or a serial number."""


@dataclass
class WorkerStatus:
    """One incarnation, as the hub knows it; times are the shell's seconds, `read` is in samples.

    `pace` is in samples a second, 0 while it is not known. `place` is its own among those that live, from its
    joining to its end. `learned`: its process has held a version before, as another incarnation.
    `unheard`: not since the hub was restarted.
    """

    incarnation: str
    name: str
    host: str
    port: int
    pid: int
    joined: float
    last_heard: float
    place: int = 0
    state: WorkerState = "joining"
    beat: Beat = field(default_factory=Beat)
    read: int = 0
    why: str = ""
    connected: bool = True
    gone_since: float = 0.0
    applied: int = 0
    entered: int = 0
    finished: bool = False
    told: bool = False
    machine: str = ""
    pace: float = 0.0
    unheard: bool = False
    learned: bool = False


class SavedWorker(msgspec.Struct, frozen=True):
    incarnation: str
    name: str
    host: str
    port: int
    pid: int
    joined: float
    state: WorkerState
    why: str
    applied: int
    entered: int
    finished: bool
    told: bool
    beat: Beat
    read: int = 0
    place: int = 0
    machine: str = ""
    learned: bool = False


class Totals(msgspec.Struct, frozen=True):
    """Bytes sent and received, and samples read."""

    sent: int = 0
    received: int = 0
    read: int = 0


class Membership:
    """The workers by incarnation, and the newest view.

    Of those that are gone and not in the view, all but the last `remembered` are forgotten, but for what
    they have sent, received and read.

    `lease`: seconds of silence after which a worker counts as lost. A broken connection counts after
    `grace`, so that a worker may reconnect. Where all who hold the newest version are silent, it may be the
    hub that is cut off: they count as lost after `away`, or when another start of the same name has come.
    """

    def __init__(self, lease: float, grace: float, away: float = 600.0) -> None:
        self.lease, self.grace, self.away = lease, grace, away
        self.remembered = REMEMBERED
        self.workers: dict[str, WorkerStatus] = {}
        self.forgotten = Totals()
        self.view: View | None = None
        self._alone = False

    def save(self) -> tuple[SavedWorker, ...]:
        """Plain values for the journal."""
        names = SavedWorker.__struct_fields__
        return tuple(SavedWorker(**{n: getattr(w, n) for n in names}) for w in self.workers.values())

    def load(self, saved: tuple[SavedWorker, ...], forgotten: Totals, view: View | None) -> None:
        """As the journal has it: nobody is connected yet."""
        self.view, self.forgotten = view, forgotten
        self.workers = {
            w.incarnation: WorkerStatus(**msgspec.structs.asdict(w), last_heard=0.0, connected=False)
            for w in saved
        }

    def adopt(self, view: View, now: float) -> None:
        """A view that another hub has opened: whoever of it has not reported yet has a lease to do so."""
        self.view = view
        for place, member in enumerate(view.members):
            self.workers.setdefault(
                member.incarnation,
                WorkerStatus(
                    member.incarnation,
                    member.name,
                    member.host,
                    member.port,
                    pid=0,
                    joined=now,
                    last_heard=now,
                    place=place,
                    state="member",
                    connected=False,
                    gone_since=now,
                    machine=member.machine,
                ),
            )

    def restarted(self, now: float) -> None:
        """Every lease begins anew."""
        for worker in self.workers.values():
            worker.last_heard = worker.gone_since = now
            worker.unheard = True

    def meet(self, hello: Hello, now: float) -> tuple[WorkerStatus, bool]:
        """The worker of this connection, and whether it is new here."""
        known = self.workers.get(hello.incarnation)
        worker = known or WorkerStatus(
            hello.incarnation,
            hello.name,
            hello.host,
            hello.port,
            hello.pid,
            joined=now,
            last_heard=now,
            place=self._place(hello.name),
            machine=hello.machine,
        )
        self.workers[hello.incarnation] = worker
        worker.connected, worker.last_heard, worker.pid = True, now, hello.pid
        worker.unheard = False
        return worker, known is None

    def disconnected(self, incarnation: str, now: float) -> None:
        """Its connection broke; it may come back."""
        worker = self.workers.get(incarnation)
        if worker is not None and worker.connected:
            worker.connected, worker.gone_since = False, now

    def enter(self, worker: WorkerStatus, view: int, version: Version) -> list[Action]:
        """A member takes part in a view, with the state of a version."""
        worker.entered, worker.applied = view, max(worker.applied, version.number)
        if worker.state != "healing":
            return []
        worker.state = "member"
        return [Note("healed", worker.name, f"worker {worker.name} holds version {version}")]

    def forget(self) -> None:
        """Forget who has been gone for longest."""
        inside = {member.incarnation for member in self.view.members} if self.view else set[str]()
        gone = [w for w in self.workers.values() if w.state in GONE and w.incarnation not in inside]
        if len(gone) <= self.remembered:
            return
        gone.sort(key=lambda worker: worker.last_heard, reverse=True)
        for worker in gone[self.remembered :]:
            del self.workers[worker.incarnation]
            self.forgotten = _sum(self.forgotten, worker)

    @property
    def totals(self) -> Totals:
        """Of all workers there ever were."""
        return reduce(_sum, self.workers.values(), self.forgotten)

    def _place(self, name: str) -> int:
        """A number for a name is its own place; other names, and who finds it taken, get the first free one.

        It is fixed as a worker joins: who already reads it as its rank must not see another one get it.
        """
        taken = {worker.place for worker in self.living() if worker.name != name}
        if name.isdecimal() and len(name) <= PLACE_DIGITS and int(name) not in taken:
            return int(name)
        return next(place for place in count() if place not in taken)

    def name(self, incarnation: str) -> str:
        """A worker's name, for people."""
        worker = self.workers.get(incarnation)
        return worker.name if worker else incarnation

    def living(self) -> Iterator[WorkerStatus]:
        """All who are not gone."""
        return (w for w in self.workers.values() if w.state not in GONE)

    def members(self) -> list[WorkerStatus]:
        """The members of the view in the order of their ranks, also those who are gone."""
        return [self.workers[m.incarnation] for m in self.view.members] if self.view else []

    def survivors(self) -> list[WorkerStatus]:
        """The members of the view who are not gone."""
        return [w for w in self.members() if w.state in ("healing", "member")]

    def sides(self) -> tuple[list[WorkerStatus], list[WorkerStatus]]:
        """The survivors who are in the view, and those still in the one before: they refuse each other."""
        number = self.view.number if self.view else 0
        inside = [w for w in self.survivors() if w.state == "healing" or w.entered >= number]
        return inside, [w for w in self.survivors() if w not in inside]

    def outside(self) -> Iterator[WorkerStatus]:
        """Who counts as a member, and is not in the newest view."""
        for worker in list(self.living()):
            inside = self.view is None or self.view.rank(worker.incarnation) is not None
            if worker.state in ("healing", "member") and not inside:
                yield worker

    def candidates(self) -> list[WorkerStatus]:
        """Who is ready for the next view, by their places: in the first one these are the ranks."""
        ready = (w for w in self.workers.values() if w.state == "ready" and w.connected)
        return sorted(ready, key=lambda worker: worker.place)

    def part_of_pace(self, incarnation: str) -> float | None:
        """What a member reads of all that the members do in a time; None while some pace is not known."""
        paces = {worker.incarnation: worker.pace for worker in self.members() if worker.state not in GONE}
        return paces[incarnation] / sum(paces.values()) if paces and all(paces.values()) else None

    @property
    def entered(self) -> bool:
        """Every member takes part in the view."""
        return self.view is not None and all(w.entered >= self.view.number for w in self.members())

    @property
    def learned(self) -> bool:
        """Somebody has said that it applied a version."""
        return any(worker.applied for worker in self.workers.values())

    def overdue(self, now: float, *, recovering: bool) -> Iterator[tuple[WorkerStatus, str]]:
        """Who counts as lost from now on, and why."""
        for worker in list(self.living()):
            last, silence = self._last_holder(worker, now), now - worker.last_heard
            spared = last and not self._succeeded(worker)
            if worker.connected and silence > (self.away if spared else self.lease):
                yield worker, f"it was silent for {silence:.1f} s, longer than its lease"
            elif not worker.connected:
                patience = self.lease if recovering or last else self.grace
                if spared and worker.unheard:
                    patience = self.away
                if now - worker.gone_since > patience:
                    yield worker, "its connection broke and did not come back"

    def isolated(self, now: float) -> str:
        """What to say, once, when it is rather this hub that is cut off than all of the others; "" else.

        Nobody who holds the state of the pool is heard any more then, though no connection broke.
        """
        holders = [w for w in self.survivors() if w.state == "member" and (w.connected or w.unheard)]
        before = self._alone
        self._alone = self.learned and bool(holders) and not any(self._is_heard(w, now) for w in holders)
        if before or not self._alone:
            return ""
        return (
            f"no member has been heard for {self.lease / 2:g} s: the hub's network may be cut, or all are "
            f"stopped; they have {self.away:g} s to be heard again, and train on meanwhile"
        )

    def _succeeded(self, worker: WorkerStatus) -> bool:
        """A later start of this name is here."""
        return any(w.name == worker.name and w.joined > worker.joined for w in self.living())

    def _is_heard(self, worker: WorkerStatus, now: float) -> bool:
        """Lately: of those who are cut off together, all are unheard when the first is overdue."""
        return worker.connected and now - worker.last_heard <= self.lease / 2

    def _last_holder(self, worker: WorkerStatus, now: float) -> bool:
        """Nobody else at hand has the state of the pool: this one has more time to come back (I4)."""
        others = (w for w in self.survivors() if w is not worker and w.state == "member")
        return worker.state == "member" and self.learned and not any(self._is_heard(w, now) for w in others)


def _sum(before: Totals, worker: WorkerStatus) -> Totals:
    beat = worker.beat
    return Totals(before.sent + beat.sent, before.received + beat.received, before.read + worker.read)
