"""The hub's decisions: who is in, who may read what, which version counts.

`Coordinator` takes an event and the time, and answers with actions to be executed in order; what is
to be remembered stands before what is to be said. It never waits and never reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal
from zlib import crc32

import msgspec

from manyhands._version import __version__
from manyhands.core.checkpoints import LONGEST_SECONDS, Checkpoints, SavedCheckpoints
from manyhands.core.decisions import (
    Action,
    Close,
    Compared,
    Connected,
    Disconnected,
    End,
    Event,
    Journal,
    Note,
    Received,
    Restored,
    Send,
    Stopped,
    Ticked,
    Undone,
    VersionRecord,
    ViewRecord,
)
from manyhands.core.digests import Digests
from manyhands.core.hosts import Hosts
from manyhands.core.ledger import Ledger, SavedLedger
from manyhands.core.membership import GONE, Membership, SavedWorker, Totals, WorkerStatus
from manyhands.core.messages import (
    FINISHED,
    START,
    Acknowledged,
    Applied,
    Asked,
    Beat,
    Dataset,
    Declared,
    Entered,
    Evicted,
    Finished,
    Followed,
    Freeze,
    Hello,
    Kept,
    Leased,
    Left,
    Member,
    Opened,
    Ready,
    Refuse,
    Saved,
    Span,
    Standing,
    Suspected,
    Tensor,
    ToHub,
    Unreadable,
    Version,
    View,
    Welcome,
)
from manyhands.core.reach import Reach
from manyhands.core.shares import better, shares_of
from manyhands.errors import DataError, ProtocolError

RunState = Literal["waiting", "training", "changing", "finished", "failed", "stopped"]
ENDED = ("finished", "failed", "stopped")
EPOCH_BITS = 20
"""The low bits of an epoch tell hubs apart that take over from the same one; those above count."""

BATCHES_BEFORE = 4
"""Which have gone well since a worker's start, at least, where it is the next one's fault that it fails."""

SHARES_LAST = 5
"""Versions, at least, between two changes of the shares: rates are to be measured meanwhile."""

FORGOTTEN = "it was in a view before this one, and has lost its place since"

UNHEARD = (
    "every worker was away for longer than its lease, with versions of which this hub had not heard: they "
    "are lost, and no state is left to begin with; start a new run in another folder"
)


@dataclass
class Change:
    """A view change under way: whose standing is awaited, and what has come."""

    number: int
    planned: bool
    why: str
    waiting: set[str]
    standings: dict[str, Standing] = field(default_factory=dict)


class SavedCoordinator(msgspec.Struct, frozen=True):
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
    digests: tuple[tuple[Version, dict[str, str]], ...]
    workers: tuple[SavedWorker, ...]
    checkpoints: SavedCheckpoints = SavedCheckpoints()
    restore: Kept | None = None
    epoch: int = 1
    taking_over: bool = False
    superseded: bool = False
    forgotten: Totals = Totals()


class Coordinator:
    """Decides over one run.

    `lease`: seconds of silence after which a worker counts as lost. A broken connection counts after
    `grace`, so that a worker may reconnect. The first view waits for `expected` workers, less those that
    were refused, but no longer than `gather` seconds after the first one is ready.

    `epoch` grows from hub to hub of a run: whoever has heard of a newer one is not this one's any more.
    """

    def __init__(
        self, run: str, expected: int = 1, lease: float = 10.0, *, grace: float = 0.3, gather: float = 60.0
    ) -> None:
        self.run, self.expected, self.gather = run, expected, gather
        self.membership = Membership(lease, grace)
        self.state: RunState = "waiting"
        together = f"s, at most {gather:.0f} s from the first that is ready" if expected > 1 else ""
        self.why = f"waiting for {expected} worker{together}"
        self.version = START
        self.tensors: tuple[Tensor, ...] = ()
        self.strategy = ""
        self.ledger = Ledger()
        self.checkpoints = Checkpoints()
        self.epoch = 1 << EPOCH_BITS
        self._salt = 0
        self._taking_over = self._superseded = False
        self._restore: Kept | None = None
        self._next_view = 1
        self._opened: Opened | None = None
        self._change: Change | None = None
        self._asked: dict[tuple[str, int], Asked] = {}
        self._digests = Digests()
        self._reach = Reach()
        self._ahead: dict[int, Applied] = {}
        self._acknowledged = 0
        self._first_ready: float | None = None
        self._refused: set[str] = set()
        self._recovering: float | None = None
        self._alone = self._over = False
        self._now = self._failed_at = 0.0

    @property
    def lease(self) -> float:
        """Seconds of silence after which a worker counts as lost."""
        return self.membership.lease

    @property
    def workers(self) -> dict[str, WorkerStatus]:
        """The incarnations that live, and the last that did."""
        return self.membership.workers

    @property
    def view(self) -> View | None:
        """The newest view."""
        return self.membership.view

    @property
    def superseded(self) -> bool:
        """A newer hub serves the run: this one has no say any more."""
        return self._superseded

    def serves(self, run: str) -> int:
        """The epoch in which this hub has a place for the workers of that run; 0 where it has none.

        One that waits to take over offers none before a member has come to it: the hub before may be well.
        """
        ended = self.state in ("failed", "stopped")
        return 0 if self._knows_nothing or run != self.run or ended else self.epoch

    @property
    def _knows_nothing(self) -> bool:
        return self._taking_over and self.view is None

    # --- the journal -------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """All that a restarted hub needs."""
        saved = SavedCoordinator(
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
            digests=self._digests.save(),
            workers=self.membership.save(),
            checkpoints=self.checkpoints.save(),
            restore=self._restore,
            epoch=self.epoch,
            taking_over=self._taking_over,
            superseded=self._superseded,
            forgotten=self.membership.forgotten,
        )
        return msgspec.msgpack.encode(saved)

    @classmethod
    def restore(cls, blob: bytes) -> Coordinator:
        """A hub that takes up where the journal ends: it waits a lease for the members it knew."""
        saved = msgspec.msgpack.decode(blob, type=SavedCoordinator)
        hub = cls(saved.run, saved.expected, saved.lease)
        hub.state, hub.why = saved.state, saved.why
        hub.version, hub._opened = saved.version, saved.opened
        hub.tensors, hub.strategy = saved.tensors, saved.strategy
        hub._next_view, hub.ledger = saved.next_view, Ledger.load(saved.ledger)
        hub.membership.load(saved.workers, saved.forgotten, saved.view)
        hub._digests = Digests(saved.digests)
        hub.checkpoints, hub._restore = Checkpoints(saved=saved.checkpoints), saved.restore
        hub.epoch, hub._taking_over = saved.epoch, saved.taking_over
        hub._superseded = saved.superseded
        if hub.state not in ENDED:
            hub._recovering = -1.0
        return hub

    def take_over(self, salt: int) -> None:
        """Begin with what the members of the run report, whose hub and journal are gone.

        Once one has, the others have a lease to do so too.

        `salt`: a random number of `EPOCH_BITS`.
        """
        self._taking_over, self._recovering, self._salt = True, -1.0, salt
        self.epoch = (2 << EPOCH_BITS) + salt
        self.why = f"waiting for the members of run {self.run}"

    def resume(
        self, kept: Kept, datasets: Iterable[Dataset], tensors: tuple[Tensor, ...], strategy: str
    ) -> None:
        """Begin with the state of a checkpoint, which the first member takes from there."""
        self.tensors, self.strategy = tensors, strategy
        self.checkpoints.last = kept
        self._go_back(kept, datasets)

    def _go_back(self, kept: Kept, datasets: Iterable[Dataset] = ()) -> None:
        self.version, self._restore = kept.version, kept
        self._ahead, self._acknowledged = {}, kept.version.number
        self._digests.forget(kept.version.number)
        self._next_view = max(self._next_view, kept.version.view + 1)
        for worker in self.workers.values():
            worker.applied = worker.entered = 0
        self.ledger.restore(datasets, kept.holdings)

    # --- events ------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event at this time; raises ProtocolError where it cannot happen."""
        self._now = now
        if self._recovering == -1.0:
            self._failed_at = now
            self._recovering = now + self.lease
            self.membership.restarted(now)
            self._first_ready = now
        match event:
            case Connected(hello):
                return self._connected(hello, now)
            case Disconnected(incarnation):
                gone = self.workers.get(incarnation)
                if gone is not None and gone.connected:
                    gone.connected, gone.gone_since = False, now
                return []
            case Compared(followed):
                return self._compared(followed)
            case Stopped(why):
                return [] if self.state in ENDED else self._end(True, why)
            case Ticked():
                return self._ticked(now)
            case Received(incarnation, message):
                sender = self.workers.get(incarnation)
                if sender is None:
                    return [Send(incarnation, Evicted(FORGOTTEN))]
                sender.last_heard = now
                if sender.state in GONE:  # who left knows it
                    return [] if sender.state == "left" else [Send(incarnation, Evicted(sender.why))]
                return self._received(sender, message, now)

    def _received(self, worker: WorkerStatus, message: ToHub, now: float) -> list[Action]:
        match message:
            case Beat():
                worker.beat, worker.read = message, max(worker.read, message.read)
                self._reach.report(worker.incarnation, message.unreachable, now)
                return []
            case Declared(dataset):
                try:
                    self.ledger.declare(dataset)
                except DataError as error:
                    return self._refuse(worker, "DataError", str(error), now)
                return []
            case Ready():
                return self._ready(worker, message, now)
            case Applied():
                return (
                    self._applied(worker, message)
                    + self._acknowledge(worker, message.version)
                    + self._grant()
                )
            case Standing():
                return self._standing(worker, message, now)
            case Entered(view, version):
                return self._entered(worker, view, version, now)
            case Asked():
                worker.pace = message.pace
                self._asked[worker.incarnation, message.dataset] = message
                return self._grant()
            case Suspected(peer, why):
                other = self.workers.get(peer)
                if other is None or other.state in GONE:
                    return []
                note = Note("suspected", other.name, f"worker {worker.name} cannot reach {other.name}: {why}")
                return [note]
            case Saved():
                return self._saved(worker, message, now)
            case Unreadable(url, why, instead):
                return self._unreadable(worker, url, why, instead, now)
            case Left(finished, why, told, batch):
                worker.finished, worker.told = finished, told
                return self._failed(worker, batch, why) + self._gone(worker, "left", why, now)
            case _:
                raise ProtocolError(
                    f"worker {worker.name} sent {type(message).__name__} on an open connection"
                )

    # --- joining -----------------------------------------------------------------------------------

    def _connected(self, hello: Hello, now: float) -> list[Action]:
        me = hello.incarnation
        if hello.run and hello.run != self.run:
            why = f"this hub serves run {self.run}, not {hello.run}: unset MANYHANDS_RUN"
            if hello.standing is not None:  # it may hold what nobody else does, and has other hubs to try
                return [Note("refused", hello.name, why), Close(me, why)]
            return [Send(me, Refuse("ConfigurationError", why)), Close(me, why)]
        if hello.software != __version__:
            why = (
                f"worker {hello.name} runs manyhands {hello.software}, the hub runs {__version__}: "
                f"install manyhands=={__version__} there"
            )
            self._refused.add(hello.name)
            return [
                Note("refused", hello.name, why),
                Send(me, Refuse("VersionMismatch", why)),
                Close(me, why),
                *self._admit(now),
            ]
        known = self.workers.get(me)
        theirs = hello.standing.member_of if hello.standing is not None else None
        if self._taking_over and theirs is not None and hello.epoch >= self.epoch:
            self.epoch = ((hello.epoch >> EPOCH_BITS) + 1 << EPOCH_BITS) + self._salt
        if self._superseded or (hello.epoch > self.epoch and not self._taking_over):
            return self._step_down(hello.incarnation, hello.name)
        if self.state in ENDED:
            over = Finished(self.why, self.state != "failed")
            return [Send(me, over), Close(me, self.why)]
        if known is not None and known.state in GONE:
            return [Send(me, Evicted(known.why))]
        if known is None and theirs is not None and not self._taking_over and theirs.number < self._next_view:
            return [Send(me, Evicted(FORGOTTEN))]
        actions: list[Action] = []
        worker, new = self.membership.meet(hello, now)
        if new:
            actions.append(Note("joined", hello.name, f"worker {hello.name} joined (pid {hello.pid})"))
        epoch = 0 if self._knows_nothing and theirs is None else self.epoch
        actions.append(Send(me, Welcome(self.run, worker.place, self.expected, self.lease, not new, epoch)))
        for dataset in hello.datasets:
            actions += self._received(worker, Declared(dataset), now)
        if worker.state in GONE:
            return actions
        if hello.standing is not None and theirs is not None:
            older = hello.epoch < self.epoch
            if self._taking_over and (older or self._change is None):
                actions += self._learn(hello, hello.standing, theirs, now)
            actions += self._returned(worker, hello.standing, now, older=older)
        elif worker.state in ("healing", "member") and self._opened is not None:
            actions += self._catch_up(worker)
        if hello.ready is not None and worker.state == "joining":
            actions += self._ready(worker, hello.ready, now)
        return actions + self._recovered(now)

    def _returned(self, worker: WorkerStatus, standing: Standing, now: float, *, older: bool) -> list[Action]:
        """A member of some view is back, after its connection or the hub broke.

        `older`: it has not heard this hub, nor the one before with the same journal.
        """
        theirs = standing.member_of
        assert theirs is not None
        if theirs.number >= self._next_view and older:
            return self._gone(worker, "lost", "another hub has taken over without it", now)
        if theirs.number >= self._next_view:
            return self._refuse(
                worker,
                "ConfigurationError",
                f"worker {worker.name} is in view {theirs.number}, which this hub's journal does not know: "
                f"restart the hub on the folder of run {self.run}, or with --take-over where that is lost",
                now,
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
        if worker.state in GONE:
            return actions
        worker.applied = standing.version.number
        self.ledger.hold(worker.incarnation, standing.held)
        if standing.healed and (self._opened is None or standing.version.number >= self._opened.at):
            worker.entered = theirs.number
        actions += self._acknowledge(worker, standing.version)
        return actions + self._catch_up(worker) + self._grant()

    def _learn(self, hello: Hello, standing: Standing, view: View, now: float) -> list[Action]:
        """A member tells the hub that takes over of the view that it is in, and of what is shared there."""
        if standing.healed and standing.version > self.version:
            self.version = standing.version
            self.ledger.restore((), standing.holdings)
        if hello.ready is not None:
            self.tensors, self.strategy = hello.ready.tensors, hello.ready.strategy
        if self.view is None or self.view.number < view.number:
            self.membership.adopt(view, now)
            self._recovering = now + self.lease
            self.state, self.why = "changing", f"this hub takes over run {self.run}, at view {view.number}"
        heard = max(view.number, standing.view)  # of a hub beside this one: nothing older counts for it
        if self._change is not None and heard >= self._change.number:
            self._change, self._recovering = None, now + self.lease
        self._next_view = max(self._next_view, heard + 1)
        actions: list[Action] = []
        for worker in list(self.membership.living()):
            if (
                worker.state in ("healing", "member")
                and self.view
                and self.view.rank(worker.incarnation) is None
            ):
                worker.state = "ready"  # no change of view is begun for its sake
                actions += self._gone(worker, "lost", "it belongs to an older view", now)
        return actions

    def _compared(self, followed: Followed) -> list[Action]:
        """A worker of another hub has asked. One that takes over waits: its members hear of the other too."""
        older = followed.run == self.run and self.epoch < followed.epoch
        if not older or self._taking_over or self.state in ENDED:
            return []
        return self._step_down(followed.incarnation, followed.name)

    def _step_down(self, incarnation: str, name: str) -> list[Action]:
        """Another hub has taken over: nobody is told anything by this one any more."""
        first = not self._superseded
        self.why = f"a newer hub serves run {self.run}, as worker {name} says: this one has no say any more"
        self._superseded, self.state = True, "stopped"
        everybody = {incarnation, *(w.incarnation for w in self.membership.living() if w.connected)}
        closed = [Close(who, self.why) for who in sorted(everybody)]
        return [Note("hub", "", self.why), *closed, End(False, self.why)] if first else [*closed]

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
        if self.view is None and self._taking_over:
            return self._unreported(now)
        if self.view is None:
            if now >= self._recovering:
                self._recovering = None
            return []
        members = self.membership.members()
        absent = [w for w in members if w.state not in GONE and not w.connected]
        if absent and now < self._recovering:
            return []
        self._recovering = None
        if self._taking_over:
            return self._begin(now, planned=False, why="another hub takes over")
        if self.state == "changing" or any(w.state in GONE for w in members):
            return self._begin(now, planned=False, why="the hub restarted in the middle of a view change")
        self.state, self.why = "training", ""
        return self._grant()

    def _unreported(self, now: float) -> list[Action]:
        """Nobody with the state has reported: wait on, but not for ever where others wait for it."""
        if not self.membership.candidates():
            self._first_ready = now
        since = now if self._first_ready is None else self._first_ready
        if now < since + self.gather:
            return []
        self._recovering = None
        return self._without_members(now, "nobody reported")

    def _ready(self, worker: WorkerStatus, ready: Ready, now: float) -> list[Action]:
        if worker.state != "joining":
            return []
        if not self.strategy:
            self.tensors, self.strategy = ready.tensors, ready.strategy
        difference = _difference(self.tensors, self.strategy, ready)
        if difference:
            return self._refuse(worker, "ModelError", f"worker {worker.name} {difference}", now)
        worker.state, worker.learned = "ready", ready.learned
        self._refused.discard(worker.name)
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
        ready = self.membership.candidates()
        if not ready or self._change is not None or self._recovering is not None:
            return []
        if self.view is None:
            since = now if self._first_ready is None else self._first_ready
            missing, left = self.expected - len(self._refused) - len(ready), since + self.gather - now
            if missing > 0 and left > 0:
                self.why = f"waiting for {missing} of {self.expected} workers, at most {left:.0f} s more"
                return []
            why = "the first view" if self._restore is None else f"the first view, from {self._restore.url}"
            begins = [w.incarnation for w in ready if self._restore is not None or not w.learned]
            if not begins:
                return self._end(False, UNHEARD)
            return self._open(self.version.number, self.version, (begins[0],), [], why)
        if not self.membership.entered:
            return []
        names = ", ".join(w.name for w in ready)
        return self._begin(now, planned=True, why=f"worker {names} joins")

    def _refuse(self, worker: WorkerStatus, kind: str, why: str, now: float) -> list[Action]:
        me, before = worker.incarnation, worker.state
        told: list[Action] = [Note("refused", worker.name, why), Send(me, Refuse(kind, why)), Close(me, why)]
        if before in ("healing", "member"):
            return told + self._gone(worker, "left", why, now)
        worker.state, worker.why = "left", why
        self._refused.add(worker.name)  # the others need not wait for it: it will not come as it is
        return told + self._admit(now)

    # --- losing ------------------------------------------------------------------------------------

    def _ticked(self, now: float) -> list[Action]:
        actions: list[Action] = []
        if self.state in ENDED:
            return actions
        actions += self._recovered(now)
        if self.state in ENDED:
            return actions
        recovering = self._recovering is not None
        self.membership.forget()
        actions += self._isolated(now)
        for worker, why in self.membership.overdue(now, recovering=recovering):
            actions += self._gone(worker, "lost", why, now)
        if self.state in ENDED:
            return actions
        actions += self._cut_off(now)
        actions += self._keep(now)  # before who has finished hears that it may go
        if self.version.number > self._acknowledged and self.view is not None:
            self._acknowledged = self.version.number
            actions += [
                Send(member.incarnation, Acknowledged(self._acknowledged))
                for member in self.membership.members()
                if member.state == "member"
            ]
        return actions + self._admit(now) + self._share_out(now)

    def _isolated(self, now: float) -> list[Action]:
        """Say so, once, when it is rather this hub that is cut off than all of the others."""
        before, self._alone = self._alone, self.membership.cut_off(now)
        if before or not self._alone:
            return []
        text = (
            f"no member has been heard for {self.lease / 2:g} s: the hub's network may be cut, or all are "
            f"stopped; they have {self.membership.away:g} s to be heard again, and train on meanwhile"
        )
        return [Note("hub", "", text)]

    def _keep(self, now: float) -> list[Action]:
        """Have a member keep the state, where that is due."""
        if self.view is None or self._change is not None or self._recovering is not None:
            return []
        holders = [w.incarnation for w in self.membership.members() if w.state == "member" and w.connected]
        line = f"{crc32(f'{self.run} {self.epoch}'.encode()):08x}"
        late = self.checkpoints.late(now)
        order = self.checkpoints.due(now, self.version, holders, line, over=self._over or self.ledger.done)
        text = f"worker {self.membership.name(late)} has not kept the state in {LONGEST_SECONDS:g} s"
        notes: list[Action] = [Note("checkpoint-failed", self.membership.name(late), text)] if late else []
        return notes + ([Send(*order)] if order is not None else [])

    def _saved(self, worker: WorkerStatus, saved: Saved, now: float) -> list[Action]:
        if not self.checkpoints.saved(worker.incarnation, saved, now):
            return []
        if saved.kept is None:
            text = f"worker {worker.name} could not keep the state: {saved.error}"
            return [Note("checkpoint-failed", worker.name, text)]
        text = (
            f"worker {worker.name} kept version {saved.kept.version} in {saved.kept.url}: "
            f"{saved.bytes / 1e6:.3g} MB in {saved.seconds:.2g} s"
        )
        return [Note("checkpoint", worker.name, text)]

    def _unreadable(
        self, worker: WorkerStatus, url: str, why: str, instead: Kept | None, now: float
    ) -> list[Action]:
        """The state is not where the run was to go on from: it goes on from the checkpoint before."""
        if self._restore is None or self._restore.url != url or self._change is not None:
            return []
        if instead is None:
            return self._end(False, f"{why}; and there is no whole one of this run before it")
        self.checkpoints.last = instead
        self._go_back(instead)
        told = f"{why}; it goes on with version {instead.version}, from {instead.url}"
        return [
            Journal(Restored(instead.version, told)),
            Note("restored", worker.name, told),
            *self._begin(now, planned=False, why=told),
        ]

    def _share_out(self, now: float) -> list[Action]:
        """Cut slices anew where they would follow the lines of the members much better."""
        busy = self._change is not None or self._recovering is not None or not self.membership.entered
        if self.view is None or self._opened is None or busy:
            return []
        if self.version.number < self._opened.at + SHARES_LAST:
            return []
        rates, hosts = self._lines(self.view.members)
        if not better(self.view.shares, rates, hosts):
            return []
        slowest = self.view.members[rates.index(min(rates))]
        why = f"slices are cut to the lines: worker {slowest.name} sends {min(rates) / 1e6:.3g} MB/s"
        return self._begin(now, planned=True, why=why)

    def _lines(self, members: tuple[Member, ...]) -> tuple[list[float], Hosts]:
        """At how many bytes/s each member sends, and who shares a host."""
        rates = [self.workers[member.incarnation].beat.line for member in members]
        return rates, Hosts([member.machine for member in members])

    def _cut_off(self, now: float) -> list[Action]:
        """End a cut between members, at the cost of the one that is cut off from most."""
        if self._change is not None or self._recovering is not None:
            return []
        survivors = self.membership.survivors()
        newest = max((w.applied for w in survivors), default=0)
        holders = [w.incarnation for w in survivors if w.state == "member" and w.applied == newest]
        keep = holders if len(holders) == 1 else ()
        sides = (tuple(w.incarnation for w in side if w.connected) for side in self.membership.sides())
        cuts = (self._reach.worst(side, now, self.lease, keep) for side in sides)
        found = next((cut for cut in cuts if cut is not None), None)
        if found is None:
            return []
        worker, others = self.workers[found[0]], ", ".join(map(self.membership.name, found[1]))
        why = (
            f"it and {others} could not reach each other for {self.lease:.0f} s: see the network between them"
        )
        return self._gone(worker, "evicted", why, now)

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
        self._reach.report(worker.incarnation, (), now)
        involved = before in ("healing", "member") or self._awaits(worker)
        if not involved or self.state in ENDED:
            return actions
        return actions + self._begin(now, planned=False, why=f"worker {worker.name} {verb}: {why}")

    def _awaits(self, worker: WorkerStatus) -> bool:
        return self._change is not None and worker.incarnation in self._change.waiting

    def _begin(self, now: float, *, planned: bool, why: str) -> list[Action]:
        """Start a view change: every member that lives says where it stands."""
        members = self.membership.survivors()
        number, self._next_view = self._next_view, self._next_view + 1
        if not members:
            return self._without_members(now, why)
        self._change = Change(number, planned, why, {w.incarnation for w in members})
        self.state, self.why = "changing", why
        return [Send(w.incarnation, Freeze(number, planned, why)) for w in members]

    def _without_members(self, now: float, why: str) -> list[Action]:
        self._change = None
        gone = self.membership.members()
        if any(w.finished for w in gone) or self.ledger.done:
            said = sorted({w.why for w in gone if w.finished and w.why != FINISHED})
            return self._end(True, "every worker has finished" + "".join(f": {why}" for why in said[:1]))
        if gone and self.membership.learned and all(w.told for w in gone):
            text = f"every worker was told to end; version {self.version} was the last, and is not kept"
            return self._end(True, text, "stopped")
        for worker in gone:
            self.ledger.release(worker.incarnation)
        if not self.membership.learned and not self._taking_over:
            self.membership.view, self._opened, self.state, self.why = None, None, "waiting", why
            self._first_ready = now
            return []
        lost = f"version {self.version} is lost: every member that held it is gone (the last: {why})"
        if self._taking_over:
            lost = f"no worker with the state of run {self.run} has reported to this hub in {self.gather:g} s"
        kept = self.checkpoints.last
        if kept is None:
            remedy = "start a new run in another folder; with --checkpoint it would go on"
            return self._end(False, f"{lost}; {remedy}")
        self._taking_over = False
        self._go_back(kept)
        self.membership.view, self._opened, self.state, self._first_ready = None, None, "waiting", now
        self.why = f"{lost}; it goes on with version {kept.version}, from {kept.url}"
        return [Journal(Restored(kept.version, self.why)), Note("restored", "", self.why)]

    def _end(self, ok: bool, why: str, state: Literal["", "stopped"] = "") -> list[Action]:
        self.state, self.why, self._change = state or ("finished" if ok else "failed"), why, None
        told: list[Action] = [
            Send(w.incarnation, Finished(why, ok)) for w in self.workers.values() if w.state not in GONE
        ]
        return [Note(self.state, "", why), *told, End(ok, why)]

    # --- changing the view -------------------------------------------------------------------------

    def _standing(self, worker: WorkerStatus, standing: Standing, now: float) -> list[Action]:
        change = self._change
        if change is None or standing.view != change.number or worker.incarnation not in change.waiting:
            return []
        actions: list[Action] = []
        for applied in standing.unacknowledged:
            actions += self._applied(worker, applied)
        if self._change is not change:  # a digest in it has cost somebody the place: all are asked anew
            return actions
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
        survivors = self.membership.survivors()
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
        learned = best < self.version and not self.ledger.knows(self.version)  # so it cannot be undone
        unheard = best > self.version  # nobody at hand has made it, and can say of what
        if self._taking_over or learned or unheard:  # the ledger is that of the version they go on with
            self.ledger.restore((), change.standings[sources[0]].holdings)
            self._taking_over = False
        actions: list[Action] = []
        for undone in self.ledger.tentative(best.number):
            self.ledger.undo(undone, change.standings)
            why = f"only {change.why} held it"
            actions += [
                Journal(Undone(undone, why)),
                Note("rolled-back", "", f"version {undone} is undone: {why}"),
            ]
        self.version, self._ahead = best, {}
        self._acknowledged = min(self._acknowledged, best.number)
        for who, standing in change.standings.items():
            self.ledger.hold(who, standing.held)
        for worker in self.workers.values():
            if worker.state in GONE:
                self.ledger.release(worker.incarnation)
        replays = tuple(who for who in sources if holders[who].replays)
        return actions + self._open(best.number, best, sources, survivors, change.why, replays)

    def _open(
        self,
        at: int,
        version: Version | None,
        sources: tuple[str, ...],
        survivors: list[WorkerStatus],
        why: str,
        replays: tuple[str, ...] = (),
    ) -> list[Action]:
        planned = self._change is not None and self._change.planned
        number = self._change.number if self._change else self._next_view
        self._next_view, self._change = max(self._next_view, number + 1), None
        joiners = self.membership.candidates()
        first, restore = self.view is None, self._restore
        begins = first and restore is None
        for worker in joiners:
            worker.state = "member" if begins and worker.incarnation in sources else "healing"
        members = tuple(
            Member(w.incarnation, w.name, w.host, w.port, w.machine) for w in (*survivors, *joiners)
        )
        self.membership.view = view = View(number, members, shares_of(*self._lines(members)))
        if joiners or not planned:  # else nobody has healed, and what was reported counts
            self._digests.forget(at)
        url = restore.url if first and restore is not None else ""
        self._opened = Opened(view, at, sources, why, version, replays, url)
        self.state, self.why = "training", ""
        names = ", ".join(m.name for m in members)
        return [
            Journal(ViewRecord(view, at, why)),
            Note("view", "", f"view {number} opens at version {at} with {names}: {why}"),
            *(Send(m.incarnation, self._opened) for m in members),
            *self._grant(),
        ]

    # --- versions and leases -----------------------------------------------------------------------

    def _applied(self, worker: WorkerStatus, applied: Applied) -> list[Action]:
        version = applied.version
        worker.applied = max(worker.applied, version.number)
        self._over = self._over or applied.last
        actions: list[Action] = []
        # While it takes over nothing is adopted: the pool may go on from what another hub's members hold.
        news = applied.contributions is not None and version.number > self.version.number
        if news and not self._taking_over:
            self._ahead[version.number] = applied
            while following := self._ahead.pop(self.version.number + 1, None):
                actions += self._adopt(following)
        if applied.digest:
            actions += self._compare(worker, version, applied.digest)
        self._settle()
        return actions

    def _acknowledge(self, worker: WorkerStatus, version: Version) -> list[Action]:
        """Who says again what the hub knows has not heard that it does."""
        known = version.number <= self._acknowledged
        return [Send(worker.incarnation, Acknowledged(self._acknowledged))] if known else []

    def _adopt(self, applied: Applied) -> list[Action]:
        """The next version counts."""
        version, contributions = applied.version, applied.contributions or ()
        ended = self.ledger.commit(version, contributions)
        self.version = version
        actions: list[Action] = [
            Journal(
                VersionRecord(
                    version, applied.digest, contributions, len(contributions), bool(self.ledger.datasets)
                )
            )
        ]
        for dataset, epoch, skipped in ended:
            if skipped:
                text = f"epoch {epoch} of data set {dataset} has ended without what is quarantined: {skipped}"
                actions.append(Note("epoch", "", text))
        for contribution in contributions:
            if (contributor := self.workers.get(contribution.incarnation)) is not None:
                contributor.read = max(contributor.read, contribution.read)
            if contribution.rejected:
                name = self.membership.name(contribution.incarnation)
                text = f"worker {name} was left out of version {version}: {contribution.rejected}"
                actions.append(Note("rejected", name, text))
        return actions

    def _settle(self) -> None:
        if self.view is None or self._change is not None:
            return
        held = min(member.applied for member in self.membership.members())
        if held > 0:
            self.ledger.settle(held)

    def _compare(self, worker: WorkerStatus, version: Version, digest: str) -> list[Action]:
        members = tuple(m.incarnation for m in self.view.members) if self.view else ()
        actions: list[Action] = []
        for other, why in self._digests.report(version, worker.incarnation, digest, members).items():
            if self.workers[other].state == "member":
                wrong = self.checkpoints.distrust(other, version.number)
                if wrong is not None:
                    text = f"{wrong.url} does not count: worker {self.workers[other].name} kept it, and {why}"
                    actions.append(Note("checkpoint-failed", self.workers[other].name, text))
                actions += self._gone(self.workers[other], "evicted", why, self.workers[other].last_heard)
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
            part = self.membership.part_of_pace(incarnation)
            spans = self.ledger.grant(incarnation, asked, rank=rank, size=self.view.size, part=part)
            if not spans:
                spans, said = self._try_again(self.workers[incarnation], dataset, asked.epoch)
                actions += said
            skipped = self.ledger.skip(incarnation, dataset, asked.epoch)
            actions.append(Send(incarnation, Leased(dataset, asked.epoch, spans, skipped)))
        return actions

    # --- what scripts fail at ----------------------------------------------------------------------

    def _failed(self, worker: WorkerStatus, batch: tuple[Span, ...], why: str) -> list[Action]:
        """A script has raised while it was at this batch: is it the batch?"""
        batch = self.ledger.leased_batch(worker.incarnation, batch)
        times = self.ledger.failed(worker.name, batch, why)
        if not times:
            return []
        self._failed_at = self._now
        samples = sum(map(len, batch))
        kind = "suspect" if worker.read >= (BATCHES_BEFORE + 1) * samples else "batch-failed"
        if times > 1 and not self.ledger.all_fails(batch[0].dataset, batch[0].epoch):
            kind = "bad-data"
        what = f"{samples} sample{'s' * (samples > 1)} of data set {batch[0].dataset}"
        again = f", at some of which {times} starts of workers have failed" if times > 1 else ""
        note = Note(kind, worker.name, f"worker {worker.name} failed at {what}{again}: {why}")
        return [note, *self._quarantine(self.ledger.proven(batch), f"{times} starts of workers failed there")]

    def _try_again(
        self, worker: WorkerStatus, dataset: int, epoch: int
    ) -> tuple[tuple[Span, ...], list[Action]]:
        """Lease what others have failed at, when nothing else is left of an epoch.

        First to who has not failed at it. Not to the only one that holds the state: another start would
        cost all that was learned.
        """
        suspect = self.ledger.suspect(worker.incarnation, dataset, epoch)
        if not suspect:
            return (), []
        others = [w for w in self.membership.survivors() if w is not worker and w.connected]
        waited = self._now - self._failed_at
        holders = [w for w in others if w.state == "member" and not self.ledger.at_risk(w.incarnation)]
        if holders == [] and any(self.ledger.at_risk(w.incarnation) for w in others):
            return (), []  # one at a time where there are two
        safe = holders or self.checkpoints.last is not None
        if not safe and self.version != START and not self.ledger.all_fails(dataset, epoch):
            if waited < self.gather and self.expected > 1:
                return (), []
            alone = f"a worker failed there, and {worker.name} alone holds the model, which is not risked"
            return (), self._quarantine(suspect, alone)
        fresh = self.ledger.unfailed(worker.name, suspect)
        if not fresh and waited < self.lease and any(self.ledger.unfailed(w.name, suspect) for w in others):
            return (), []
        return self.ledger.try_again(worker.incarnation, fresh or suspect), []

    def _quarantine(self, spans: Iterable[Span], because: str) -> list[Action]:
        return [
            Note("quarantined", "", f"{found} counts no more: {because}; the last time {found.why}")
            for found in self.ledger.bar(spans)
        ]


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
