"""The hub's decisions: who is in, who may read what, which version counts.

`Coordinator` takes an event and the time, and answers with actions to be executed in order; what is
to be remembered stands before what is to be said. It never waits and never reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from manyhands._version import __version__
from manyhands.core.ledger import Ledger, SavedLedger
from manyhands.core.messages import (
    START,
    Acknowledged,
    Applied,
    Asked,
    Beat,
    Contribution,
    Declared,
    Entered,
    Evicted,
    Finished,
    Freeze,
    Hello,
    Leased,
    Left,
    Member,
    Opened,
    Ready,
    Refuse,
    Standing,
    Suspected,
    Tensor,
    ToHub,
    ToWorker,
    Version,
    View,
    Welcome,
)
from manyhands.errors import DataError, ProtocolError

# --- what happened ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connected:
    """A control connection opened with this Hello."""

    hello: Hello


@dataclass(frozen=True)
class Received:
    """A worker said something."""

    incarnation: str
    message: ToHub


@dataclass(frozen=True)
class Disconnected:
    """A control connection broke."""

    incarnation: str


@dataclass(frozen=True)
class Stopped:
    """Somebody ends the run."""

    why: str


@dataclass(frozen=True)
class Ticked:
    """Time went by."""


Event = Connected | Received | Disconnected | Stopped | Ticked

# --- what to do ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VersionRecord:
    """A version was adopted."""

    version: Version
    digest: str
    contributions: tuple[Contribution, ...]
    view_size: int


@dataclass(frozen=True)
class ViewRecord:
    """A view was opened at a version."""

    view: View
    at: int
    why: str


@dataclass(frozen=True)
class Undone:
    """A version that only the dead held leaves the history."""

    version: Version
    why: str


@dataclass(frozen=True)
class Journal:
    """Remember, before anything that follows is said."""

    record: VersionRecord | ViewRecord | Undone


@dataclass(frozen=True)
class Send:
    incarnation: str
    message: ToWorker


@dataclass(frozen=True)
class Close:
    """End this worker's connection."""

    incarnation: str
    why: str


@dataclass(frozen=True)
class Note:
    """A line for people."""

    kind: str
    who: str
    text: str


@dataclass(frozen=True)
class End:
    """The run is over."""

    ok: bool
    why: str


Action = Journal | Send | Close | Note | End
WorkerState = Literal["joining", "ready", "healing", "member", "lost", "left"]
RunState = Literal["waiting", "training", "changing", "finished", "failed", "stopped"]
GONE = ("lost", "left")
ENDED = ("finished", "failed", "stopped")


@dataclass
class WorkerStatus:
    """One incarnation, as the hub knows it; times are the shell's seconds."""

    incarnation: str
    name: str
    host: str
    port: int
    pid: int
    joined: float
    last_heard: float
    state: WorkerState = "joining"
    beat: Beat = field(default_factory=Beat)
    why: str = ""
    connected: bool = True
    gone_since: float = 0.0
    applied: int = 0
    entered: int = 0
    finished: bool = False


@dataclass
class Change:
    """A view change under way: whose standing is awaited, and what has come."""

    number: int
    planned: bool
    why: str
    waiting: set[str]
    standings: dict[str, Standing] = field(default_factory=dict)


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
    beat: Beat


class Saved(msgspec.Struct, frozen=True):
    """A coordinator as plain values, for the journal."""

    run: str
    expected: int
    lease: float
    state: RunState
    why: str
    next_view: int
    view: View | None
    opened: Opened | None
    version: Version
    tensors: tuple[Tensor, ...]
    strategy: str
    ledger: SavedLedger
    workers: tuple[SavedWorker, ...]


class Coordinator:
    """Decides over one run.

    `lease`: seconds of silence after which a worker counts as lost. A broken connection counts after
    `grace`, so that a worker may reconnect. The first view waits for `expected` workers, but no longer
    than `gather` seconds after the first one is ready.
    """

    def __init__(
        self, run: str, expected: int = 1, lease: float = 10.0, *, grace: float = 0.3, gather: float = 60.0
    ) -> None:
        self.run, self.expected, self.lease = run, expected, lease
        self.grace, self.gather = grace, gather
        self.state: RunState = "waiting"
        self.why = f"waiting for {expected} worker{'s' if expected != 1 else ''}"
        self.view: View | None = None
        self.version = START
        self.tensors: tuple[Tensor, ...] = ()
        self.strategy = ""
        self.workers: dict[str, WorkerStatus] = {}
        self.ledger = Ledger()
        self._next_view = 1
        self._opened: Opened | None = None
        self._change: Change | None = None
        self._asked: dict[tuple[str, int], Asked] = {}
        self._digests: dict[Version, dict[str, str]] = {}
        self._acknowledged = 0
        self._first_ready: float | None = None
        self._recovering: float | None = None

    # --- the journal -------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """All that a restarted hub needs."""
        saved = Saved(
            run=self.run,
            expected=self.expected,
            lease=self.lease,
            state=self.state,
            why=self.why,
            next_view=self._next_view,
            view=self.view,
            opened=self._opened,
            version=self.version,
            tensors=self.tensors,
            strategy=self.strategy,
            ledger=self.ledger.save(),
            workers=tuple(
                SavedWorker(**{name: getattr(w, name) for name in SavedWorker.__struct_fields__})
                for w in self.workers.values()
            ),
        )
        return msgspec.msgpack.encode(saved)

    @classmethod
    def restore(cls, blob: bytes) -> Coordinator:
        """A hub that takes up where the journal ends: it waits a lease for the members it knew."""
        saved = msgspec.msgpack.decode(blob, type=Saved)
        hub = cls(saved.run, saved.expected, saved.lease)
        hub.state, hub.why = saved.state, saved.why
        hub.view, hub.version, hub._opened = saved.view, saved.version, saved.opened
        hub.tensors, hub.strategy = saved.tensors, saved.strategy
        hub._next_view, hub.ledger = saved.next_view, Ledger.load(saved.ledger)
        for w in saved.workers:
            status = WorkerStatus(**msgspec.structs.asdict(w), last_heard=0.0, connected=False)
            hub.workers[w.incarnation] = status
        if hub.state not in ENDED:
            hub._recovering = -1.0
        return hub

    # --- events ------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event at this time; raises ProtocolError where it cannot happen."""
        if self._recovering == -1.0:
            self._recovering = now + self.lease
            for worker in self.workers.values():
                worker.last_heard = worker.gone_since = now
        match event:
            case Connected(hello):
                return self._connected(hello, now)
            case Disconnected(incarnation):
                gone = self.workers.get(incarnation)
                if gone is not None and gone.connected:
                    gone.connected, gone.gone_since = False, now
                return []
            case Stopped(why):
                return [] if self.state in ENDED else self._end(True, why)
            case Ticked():
                return self._ticked(now)
            case Received(incarnation, message):
                sender = self.workers.get(incarnation)
                if sender is None:
                    raise ProtocolError(f"{type(message).__name__} of {incarnation}, who never said Hello")
                sender.last_heard = now
                if sender.state in GONE:
                    return [Send(incarnation, Evicted(sender.why))]
                return self._received(sender, message, now)

    def _received(self, worker: WorkerStatus, message: ToHub, now: float) -> list[Action]:
        match message:
            case Beat():
                worker.beat = message
                return []
            case Declared(dataset):
                try:
                    self.ledger.declare(dataset)
                except DataError as error:
                    return self._refuse(worker, "DataError", str(error))
                return []
            case Ready():
                return self._ready(worker, message, now)
            case Applied():
                return self._applied(worker, message) + self._grant()
            case Standing():
                return self._standing(worker, message, now)
            case Entered(view, version):
                return self._entered(worker, view, version, now)
            case Asked():
                self._asked[worker.incarnation, message.dataset] = message
                return self._grant()
            case Suspected(peer, why):
                other = self.workers.get(peer)
                if other is None or other.state in GONE:
                    return []
                note = Note("suspected", other.name, f"worker {worker.name} cannot reach {other.name}: {why}")
                return [note]
            case Left(finished, why):
                worker.finished = finished
                return self._gone(worker, "left", why, now)
            case _:
                raise ProtocolError(
                    f"worker {worker.name} sent {type(message).__name__} on an open connection"
                )

    # --- joining -----------------------------------------------------------------------------------

    def _connected(self, hello: Hello, now: float) -> list[Action]:
        me = hello.incarnation
        if hello.run and hello.run != self.run:
            why = f"this hub serves run {self.run}, not {hello.run}: unset MANYHANDS_RUN"
            return [Send(me, Refuse("ConfigurationError", why)), Close(me, why)]
        if hello.software != __version__:
            why = (
                f"worker {hello.name} runs manyhands {hello.software}, the hub runs {__version__}: "
                f"install manyhands=={__version__} there"
            )
            return [
                Note("refused", hello.name, why),
                Send(me, Refuse("VersionMismatch", why)),
                Close(me, why),
            ]
        worker = self.workers.get(me)
        if self.state in ENDED:
            over = Finished(self.why, self.state != "failed")
            return [Send(me, over), Close(me, self.why)]
        if worker is not None and worker.state in GONE:
            return [Send(me, Evicted(worker.why))]
        actions: list[Action] = []
        known = worker is not None
        if worker is None:
            worker = WorkerStatus(me, hello.name, hello.host, hello.port, hello.pid, now, now)
            self.workers[me] = worker
            actions.append(Note("joined", hello.name, f"worker {hello.name} joined (pid {hello.pid})"))
        worker.connected, worker.last_heard = True, now
        places = sorted((w for w in self.workers.values() if w.state not in GONE), key=_by_name)
        place = next(i for i, w in enumerate(places) if w is worker)
        actions.append(Send(me, Welcome(self.run, place, self.expected, self.lease, known)))
        for dataset in hello.datasets:
            actions += self._received(worker, Declared(dataset), now)
        if hello.standing is not None and hello.standing.member_of is not None:
            actions += self._returned(worker, hello.standing, now)
        elif worker.state in ("healing", "member") and self._opened is not None:
            actions += self._catch_up(worker)
        if hello.ready is not None and worker.state == "joining":
            actions += self._ready(worker, hello.ready, now)
        return actions + self._recovered(now)

    def _returned(self, worker: WorkerStatus, standing: Standing, now: float) -> list[Action]:
        """A member of some view is back, after its connection or the hub broke."""
        theirs = standing.member_of
        assert theirs is not None
        if theirs.number >= self._next_view:
            return self._refuse(
                worker,
                "ConfigurationError",
                f"worker {worker.name} is in view {theirs.number}, which this hub's journal does not know: "
                f"restart the hub on the folder of run {self.run}",
            )
        if self.view is None:
            worker.state = "ready"
            return []
        if self.view.rank(worker.incarnation) is None:
            return self._gone(worker, "lost", "it belongs to an older view", now)
        worker.state = "member" if standing.healed else "healing"
        actions: list[Action] = []
        for applied in standing.unacknowledged:
            actions += self._applied(worker, applied)
        worker.applied = standing.version.number
        self.ledger.hold(worker.incarnation, standing.held)
        if standing.healed and (self._opened is None or standing.version.number >= self._opened.at):
            worker.entered = theirs.number
        return actions + self._catch_up(worker) + self._grant()

    def _catch_up(self, worker: WorkerStatus) -> list[Action]:
        """Say again what the worker may have missed while its connection was down."""
        actions: list[Action] = []
        if self._opened is not None and self._opened.view.rank(worker.incarnation) is not None:
            actions.append(Send(worker.incarnation, self._opened))
        if self._change is not None and worker.incarnation in self._change.waiting:
            change = self._change
            actions.append(Send(worker.incarnation, Freeze(change.number, change.planned, change.why)))
        return actions

    def _recovered(self, now: float) -> list[Action]:
        """A restarted hub goes on once every member it knew has reported, or its lease is over."""
        if self._recovering is None:
            return []
        if self.view is None:
            if now >= self._recovering:
                self._recovering = None
            return []
        members = [self.workers[m.incarnation] for m in self.view.members]
        absent = [w for w in members if w.state not in GONE and not w.connected]
        if absent and now < self._recovering:
            return []
        self._recovering = None
        if self.state == "changing" or any(w.state in GONE for w in members):
            return self._begin(now, planned=False, why="the hub restarted in the middle of a view change")
        self.state, self.why = "training", ""
        return self._grant()

    def _ready(self, worker: WorkerStatus, ready: Ready, now: float) -> list[Action]:
        if not self.strategy:
            self.tensors, self.strategy = ready.tensors, ready.strategy
        difference = _difference(self.tensors, self.strategy, ready)
        if difference:
            return self._refuse(worker, "ModelError", f"worker {worker.name} {difference}")
        worker.state = "ready"
        if self._first_ready is None:
            self._first_ready = now
        return self._admit(now)

    def _entered(self, worker: WorkerStatus, view: int, version: Version, now: float) -> list[Action]:
        if self.view is None or view != self.view.number:
            return []
        worker.entered = view
        worker.applied = max(worker.applied, version.number)
        if worker.state != "healing":
            return self._admit(now)
        worker.state = "member"
        note = Note("healed", worker.name, f"worker {worker.name} holds version {version}")
        return [note, *self._admit(now)]

    def _admit(self, now: float) -> list[Action]:
        """Open the first view, or plan one for those who are ready, when all have entered the last."""
        ready = self._candidates()
        if not ready or self._change is not None or self._recovering is not None:
            return []
        if self.view is None:
            waited = self._first_ready is not None and now - self._first_ready >= self.gather
            if len(ready) < self.expected and not waited:
                return []
            return self._open(START.number, START, (ready[0].incarnation,), [], "the first view")
        if any(self.workers[m.incarnation].entered < self.view.number for m in self.view.members):
            return []
        names = ", ".join(w.name for w in ready)
        return self._begin(now, planned=True, why=f"worker {names} joins")

    def _refuse(self, worker: WorkerStatus, kind: str, why: str) -> list[Action]:
        worker.state, worker.why = "left", why
        me = worker.incarnation
        return [Note("refused", worker.name, why), Send(me, Refuse(kind, why)), Close(me, why)]

    # --- losing ------------------------------------------------------------------------------------

    def _ticked(self, now: float) -> list[Action]:
        actions: list[Action] = []
        if self.state in ENDED:
            return actions
        actions += self._recovered(now)
        for worker in list(self.workers.values()):
            if worker.state in GONE:
                continue
            if worker.connected and now - worker.last_heard > self.lease:
                why = f"it was silent for {now - worker.last_heard:.1f} s, longer than its lease"
                actions += self._gone(worker, "lost", why, now)
            elif not worker.connected and now - worker.gone_since > self._patience_with(worker):
                actions += self._gone(worker, "lost", "its connection broke and did not come back", now)
        if self.version.number > self._acknowledged and self.view is not None:
            self._acknowledged = self.version.number
            actions += [
                Send(m.incarnation, Acknowledged(self._acknowledged))
                for m in self.view.members
                if self.workers[m.incarnation].state == "member"
            ]
        return actions + self._admit(now)

    def _patience_with(self, worker: WorkerStatus) -> float:
        """Seconds a broken connection may last: the whole lease where nobody else is at hand (I4, I7)."""
        if self._recovering is not None:
            return self.lease
        others = (w for w in self._survivors() if w is not worker and w.state == "member" and w.connected)
        alone = worker.state == "member" and self.version != START and not any(others)
        return self.lease if alone else self.grace

    def _gone(
        self,
        worker: WorkerStatus,
        how: Literal["lost", "left", "evicted"],
        why: str,
        now: float,
    ) -> list[Action]:
        before = worker.state
        worker.state, worker.why = ("left" if how == "left" else "lost"), why
        verb = "left" if how == "left" else f"is {how}"
        actions: list[Action] = [Note(how, worker.name, f"worker {worker.name} {verb}: {why}")]
        if how != "left" and worker.connected:
            actions.append(Send(worker.incarnation, Evicted(why)))
        self._asked = {key: asked for key, asked in self._asked.items() if key[0] != worker.incarnation}
        involved = before in ("healing", "member") or self._awaits(worker)
        if not involved or self.state in ENDED:
            return actions
        return actions + self._begin(now, planned=False, why=f"worker {worker.name} {verb}: {why}")

    def _awaits(self, worker: WorkerStatus) -> bool:
        return self._change is not None and worker.incarnation in self._change.waiting

    def _begin(self, now: float, *, planned: bool, why: str) -> list[Action]:
        """Start a view change: every member that lives says where it stands."""
        members = self._survivors()
        number, self._next_view = self._next_view, self._next_view + 1
        if not members:
            return self._without_members(now, why)
        self._change = Change(number, planned, why, {w.incarnation for w in members})
        self.state, self.why = "changing", why
        return [Send(w.incarnation, Freeze(number, planned, why)) for w in members]

    def _without_members(self, now: float, why: str) -> list[Action]:
        self._change = None
        gone = [w for m in (self.view.members if self.view else ()) if (w := self.workers[m.incarnation])]
        if any(w.finished for w in gone) or self.ledger.done:
            return self._end(True, "every worker has finished")
        for worker in gone:
            self.ledger.release(worker.incarnation)
        if self.version == START:
            self.view, self._opened, self.state, self.why = None, None, "waiting", why
            self._first_ready = now
            return []
        return self._end(
            False,
            f"version {self.version} is lost: every member that held it is gone (the last: {why}); "
            f"start the run again",
        )

    def _end(self, ok: bool, why: str) -> list[Action]:
        self.state, self.why, self._change = ("finished" if ok else "failed"), why, None
        told: list[Action] = [
            Send(w.incarnation, Finished(why, ok)) for w in self.workers.values() if w.state not in GONE
        ]
        return [Note("finished" if ok else "failed", "", why), *told, End(ok, why)]

    # --- changing the view -------------------------------------------------------------------------

    def _standing(self, worker: WorkerStatus, standing: Standing, now: float) -> list[Action]:
        change = self._change
        if change is None or standing.view != change.number or worker.incarnation not in change.waiting:
            return []
        actions: list[Action] = []
        for applied in standing.unacknowledged:
            actions += self._applied(worker, applied)
        worker.applied = standing.version.number
        change.waiting.discard(worker.incarnation)
        change.standings[worker.incarnation] = standing
        return actions + (self._decide(now) if not change.waiting else [])

    def _decide(self, now: float) -> list[Action]:
        """All who live have said where they stand."""
        change = self._change
        assert change is not None
        holders = {who: s for who, s in change.standings.items() if s.healed}
        if not holders:
            for who in change.standings:
                self.workers[who].state = "ready"
            return self._without_members(now, change.why)
        survivors = self._survivors()
        if change.planned:
            at, version = max(s.stops_at for s in holders.values()), None
            sources = tuple(w.incarnation for w in survivors if w.incarnation in holders)
            return self._open(at, version, sources, survivors, change.why)
        best = max(s.version for s in holders.values())
        sources = tuple(
            w.incarnation
            for w in survivors
            if w.incarnation in holders and holders[w.incarnation].version == best
        )
        actions: list[Action] = []
        for undone in self.ledger.tentative(best.number):
            self.ledger.undo(undone, change.standings)
            why = f"only {change.why} held it"
            actions += [
                Journal(Undone(undone, why)),
                Note("rolled-back", "", f"version {undone} is undone: {why}"),
            ]
        self.version = best
        self._acknowledged = min(self._acknowledged, best.number)
        for who, standing in change.standings.items():
            self.ledger.hold(who, standing.held)
        for worker in self.workers.values():
            if worker.state in GONE:
                self.ledger.release(worker.incarnation)
        return actions + self._open(best.number, best, sources, survivors, change.why)

    def _open(
        self,
        at: int,
        version: Version | None,
        sources: tuple[str, ...],
        survivors: list[WorkerStatus],
        why: str,
    ) -> list[Action]:
        number = self._change.number if self._change else self._next_view
        self._next_view, self._change = max(self._next_view, number + 1), None
        joiners = self._candidates()
        for worker in joiners:
            worker.state = "member" if worker.incarnation in sources else "healing"
        members = tuple(Member(w.incarnation, w.name, w.host, w.port) for w in (*survivors, *joiners))
        self.view = View(number, members)
        self._opened = Opened(self.view, at, sources, why, version)
        self.state, self.why = "training", ""
        names = ", ".join(m.name for m in members)
        return [
            Journal(ViewRecord(self.view, at, why)),
            Note("view", "", f"view {number} opens at version {at} with {names}: {why}"),
            *(Send(m.incarnation, self._opened) for m in members),
            *self._grant(),
        ]

    # --- versions and leases -----------------------------------------------------------------------

    def _applied(self, worker: WorkerStatus, applied: Applied) -> list[Action]:
        version = applied.version
        worker.applied = max(worker.applied, version.number)
        actions: list[Action] = []
        if (
            applied.contributions is not None
            and version.number == self.version.number + 1
            and not self.ledger.knows(version)
        ):
            self.version = version
            self.ledger.commit(version, applied.contributions)
            size = len(applied.contributions)
            record = VersionRecord(version, applied.digest, applied.contributions, size)
            actions.append(Journal(record))
            for contribution in applied.contributions:
                if contribution.rejected:
                    name = self._name(contribution.incarnation)
                    text = f"worker {name} was left out of version {version}: {contribution.rejected}"
                    actions.append(Note("rejected", name, text))
        if applied.digest:
            actions += self._compare(worker, version, applied.digest)
        self._settle()
        return actions

    def _settle(self) -> None:
        if self.view is None or self._change is not None:
            return
        held = min(self.workers[m.incarnation].applied for m in self.view.members)
        if held > 0:
            self.ledger.settle(held)

    def _compare(self, worker: WorkerStatus, version: Version, digest: str) -> list[Action]:
        """Same bits (I2): whoever differs from the majority, or from the lowest rank in a tie, goes."""
        votes = self._digests.setdefault(version, {})
        votes[worker.incarnation] = digest
        if self.view is None or any(m.incarnation not in votes for m in self.view.members):
            self._digests = {v: d for v, d in self._digests.items() if v.number > version.number - 8}
            return []
        del self._digests[version]
        order = [votes[m.incarnation] for m in self.view.members]
        right = max(order, key=lambda d: (order.count(d), -order.index(d)))
        actions: list[Action] = []
        for member in self.view.members:
            other = self.workers[member.incarnation]
            if votes[member.incarnation] != right and other.state == "member":
                why = f"its version {version} has digest {votes[member.incarnation]}, the others have {right}"
                actions += self._gone(other, "evicted", why, other.last_heard)
        return actions

    def _grant(self) -> list[Action]:
        """Answer whoever asked for data, as far as it can be decided now."""
        if self.view is None or self._change is not None or self._recovering is not None:
            return []
        actions: list[Action] = []
        for key, asked in list(self._asked.items()):
            incarnation, dataset = key
            rank = self.view.rank(incarnation)
            if rank is None or dataset not in self.ledger.datasets:
                continue
            if asked.epoch > self.ledger.epoch(dataset):
                continue
            del self._asked[key]
            spans = self.ledger.grant(
                incarnation, dataset, asked.epoch, asked.samples, rank=rank, size=self.view.size
            )
            actions.append(Send(incarnation, Leased(dataset, asked.epoch, spans)))
        return actions

    # --- who is who --------------------------------------------------------------------------------

    def _survivors(self) -> list[WorkerStatus]:
        members = self.view.members if self.view else ()
        return [w for m in members if (w := self.workers[m.incarnation]).state in ("healing", "member")]

    def _candidates(self) -> list[WorkerStatus]:
        return sorted((w for w in self.workers.values() if w.state == "ready" and w.connected), key=_by_name)

    def _name(self, incarnation: str) -> str:
        worker = self.workers.get(incarnation)
        return worker.name if worker else incarnation


def _by_name(worker: WorkerStatus) -> tuple[int, str]:
    return (int(worker.name), "") if worker.name.isdecimal() else (1 << 30, worker.name)


def _difference(tensors: Iterable[Tensor], strategy: str, ready: Ready) -> str:
    """How what a worker shares differs from what the first one shares; "" if it does not."""
    if ready.strategy != strategy:
        return (
            f"shares with {ready.strategy}, the others with {strategy}: give every worker the same strategy"
        )
    ours = tuple(tensors)
    for theirs, known in zip(ready.tensors, ours, strict=False):
        if theirs != known:
            return (
                f"has {theirs.name} {theirs.shape} {theirs.dtype} where the others have "
                f"{known.name} {known.shape} {known.dtype}: build the same model on every worker"
            )
    if len(ready.tensors) != len(ours):
        return (
            f"shares {len(ready.tensors)} tensors, the others {len(ours)}: build the same one on every worker"
        )
    return ""
