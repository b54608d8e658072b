"""The hub's decisions: who is in, who may read what, which version counts.

`Coordinator` takes an event and the time, and answers with actions to be executed in order; what is
to be remembered stands before what is to be said. It never waits and never reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal
from zlib import crc32

import msgspec

from manyhands.core.agreement import difference, of_another_run, of_other_software, refusal
from manyhands.core.checkpoints import Checkpoints
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
)
from manyhands.core.digests import Digests
from manyhands.core.grants import Grants
from manyhands.core.hangs import hung
from manyhands.core.ledger import Ledger
from manyhands.core.membership import GONE, Membership, WorkerStatus
from manyhands.core.messages import (
    FINISHED,
    START,
    Applied,
    Asked,
    Beat,
    Dataset,
    Declared,
    Entered,
    Evicted,
    Finished,
    Followed,
    Hello,
    Kept,
    Left,
    Ready,
    Refuse,
    Saved,
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
from manyhands.core.saved import RunState, SavedCoordinator
from manyhands.core.versions import Versions
from manyhands.core.views import Change, Views
from manyhands.errors import DataError, ProtocolError

ENDED = ("finished", "failed", "stopped")
EPOCH_BITS = 20
"""The low bits of an epoch tell hubs apart that take over from the same one; those above count."""

FORGOTTEN = "it was in a view before this one, and has lost its place since"

UNHEARD = (
    "every worker was away for longer than its lease, with versions of which this hub had not heard: they "
    "are lost, and no state is left to begin with; start a new run in another folder"
)


class Coordinator:
    """Decides over one run.

    `lease`: seconds of silence after which a worker counts as lost. A broken connection counts after
    `grace`, so that a worker may reconnect. The first view waits for `expected` workers, less those that
    were refused, but no longer than `gather` seconds after the first one is ready.

    `epoch` grows from hub to hub of a run: whoever has heard of a newer one is not this one's any more, and
    one that is `superseded` has no say.
    """

    def __init__(
        self, run: str, expected: int = 1, lease: float = 10.0, *, grace: float = 0.3, gather: float = 60.0
    ) -> None:
        self.run, self.expected, self.gather = run, expected, gather
        self.membership = Membership(lease, grace)
        self.state: RunState = "waiting"
        together = f"s, at most {gather:.0f} s from the first that is ready" if expected > 1 else ""
        self.why = f"waiting for {expected} worker{together}"
        self.tensors: tuple[Tensor, ...] = ()
        self.strategy = ""
        self.ledger = Ledger()
        self._grants = Grants(self.ledger, self.membership)
        self._versions = Versions(self.ledger, self.membership)
        self._views = Views(self.membership, self.ledger, self._versions)
        self._reach = Reach()
        self.checkpoints = Checkpoints()
        self.epoch, self._salt = 1 << EPOCH_BITS, 0
        self.superseded = self._taking_over = False
        self._first_ready: float | None = None
        self._refused: set[str] = set()
        self._barred: dict[str, Ready] = {}
        self._recovering: float | None = None
        self._now = 0.0

    @property
    def workers(self) -> dict[str, WorkerStatus]:
        """The incarnations that live, and the last that did."""
        return self.membership.workers

    @property
    def view(self) -> View | None:
        """The newest view."""
        return self.membership.view

    @property
    def version(self) -> Version:
        """The newest version that counts."""
        return self._versions.newest

    def serves(self, run: str) -> int:
        """The epoch in which this hub has a place for the workers of that run; 0 where it has none.

        One that waits to take over offers none before a member has come to it: the hub before may be well.
        """
        ended = self.state in ("failed", "stopped")
        return 0 if self._knows_nothing or run != self.run or ended else self.epoch

    @property
    def _knows_nothing(self) -> bool:
        return self._taking_over and self.view is None

    @property
    def _busy(self) -> bool:
        """The view changes, members are awaited since a restart, or the run is over: nothing else begins."""
        return self._views.change is not None or self._recovering is not None or self.state in ENDED

    # --- the journal -------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """All that a restarted hub needs."""
        saved = SavedCoordinator(
            run=self.run,
            expected=self.expected,
            lease=self.membership.lease,
            state=self.state,
            why=self.why,
            next_view=self._views.next,
            view=self.view,
            opened=self._views.opened,
            version=self.version,
            tensors=self.tensors,
            strategy=self.strategy,
            ledger=self.ledger.save(),
            digests=self._versions.digests.save(),
            workers=self.membership.save(),
            checkpoints=self.checkpoints.save(),
            restore=self._views.restore,
            epoch=self.epoch,
            taking_over=self._taking_over,
            superseded=self.superseded,
            forgotten=self.membership.forgotten,
        )
        return msgspec.msgpack.encode(saved)

    @classmethod
    def restore(cls, blob: bytes) -> Coordinator:
        """A hub that takes up where the journal ends: it waits a lease for the members it knew."""
        saved = msgspec.msgpack.decode(blob, type=SavedCoordinator)
        hub = cls(saved.run, saved.expected, saved.lease)
        hub.state, hub.why = saved.state, saved.why
        hub.tensors, hub.strategy = saved.tensors, saved.strategy
        hub.ledger.load(saved.ledger)
        hub.membership.load(saved.workers, saved.forgotten, saved.view)
        hub._versions.newest, hub._versions.digests = saved.version, Digests(saved.digests)
        hub._views.next, hub._views.opened, hub._views.restore = saved.next_view, saved.opened, saved.restore
        hub.checkpoints = Checkpoints(saved=saved.checkpoints)
        hub.epoch, hub._taking_over, hub.superseded = saved.epoch, saved.taking_over, saved.superseded
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
        self._views.go_back(kept, datasets)

    # --- events ------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event at this time; raises ProtocolError where it cannot happen."""
        self._now = now
        if self._recovering == -1.0:
            self._grants.restarted(now)
            self._recovering = now + self.membership.lease
            self.membership.restarted(now)
            self._first_ready = now
        match event:
            case Connected(hello):
                return self._connected(hello, now)
            case Disconnected(incarnation):
                self.membership.disconnected(incarnation, now)
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
                actions = self._applied(worker, message)
                actions += self._versions.acknowledge_again(worker.incarnation, message.version)
                return actions + self._grant()
            case Standing():
                return self._standing(worker, message, now)
            case Entered(view, version):
                if self.view is None or view != self.view.number:
                    return []
                return self.membership.enter(worker, view, version) + self._admit(now)
            case Asked():
                self._grants.ask(worker, message)
                return self._grant()
            case Suspected(peer, why):
                other = self.workers.get(peer)
                if other is None or other.state in GONE:
                    return []
                note = Note("suspected", other.name, f"worker {worker.name} cannot reach {other.name}: {why}")
                return [note]
            case Saved():
                return self.checkpoints.told(worker, message, now)
            case Unreadable(url, why, instead):
                return self._unreadable(worker, url, why, instead, now)
            case Left(finished, why, told, batch):
                worker.finished, worker.told = finished, told
                failed = self._grants.failed(worker, batch, why, now)
                return failed + self._gone(worker, "left", why, now)
            case _:
                raise ProtocolError(
                    f"worker {worker.name} sent {type(message).__name__} on an open connection"
                )

    # --- joining -----------------------------------------------------------------------------------

    def _connected(self, hello: Hello, now: float) -> list[Action]:
        me = hello.incarnation
        if why := of_another_run(hello, self.run):
            if hello.standing is not None:  # it may hold what nobody else does, and has other hubs to try
                return [Note("refused", hello.name, why), Close(me, why)]
            return [Send(me, Refuse("ConfigurationError", why)), Close(me, why)]
        if why := of_other_software(hello):
            self._refused.add(hello.name)
            return refusal(me, hello.name, "VersionMismatch", why) + self._admit(now)
        known = self.workers.get(me)
        theirs = hello.standing.member_of if hello.standing is not None else None
        if self._taking_over and theirs is not None and hello.epoch >= self.epoch:
            self.epoch = ((hello.epoch >> EPOCH_BITS) + 1 << EPOCH_BITS) + self._salt
        if self.superseded or (hello.epoch > self.epoch and not self._taking_over):
            return self._step_down(hello.incarnation, hello.name)
        if self.state in ENDED:
            over = Finished(self.why, self.state != "failed")
            return [Send(me, over), Close(me, self.why)]
        if known is not None and known.state in GONE:
            return [Send(me, Evicted(known.why))]
        strange = known is None and theirs is not None and theirs.number < self._views.next
        if strange and not self._taking_over:
            return [Send(me, Evicted(FORGOTTEN))]
        actions: list[Action] = []
        worker, new = self.membership.meet(hello, now)
        if new:
            actions.append(Note("joined", hello.name, f"worker {hello.name} joined (pid {hello.pid})"))
        epoch = 0 if self._knows_nothing and theirs is None else self.epoch
        lease = self.membership.lease
        actions.append(Send(me, Welcome(self.run, worker.place, self.expected, lease, not new, epoch)))
        for dataset in hello.datasets:
            actions += self._received(worker, Declared(dataset), now)
        if worker.state in GONE:
            return actions
        if hello.standing is not None and theirs is not None:
            older = hello.epoch < self.epoch
            if self._taking_over and (older or self._views.change is None):
                actions += self._learn(hello, hello.standing, theirs, now)
            actions += self._returned(worker, hello.standing, now, older=older)
        elif worker.state in ("healing", "member") and self._views.opened is not None:
            actions += self._views.catch_up(worker.incarnation)
        if hello.ready is not None and worker.state == "joining":
            actions += self._ready(worker, hello.ready, now)
        return actions + self._recovered(now)

    def _returned(self, worker: WorkerStatus, standing: Standing, now: float, *, older: bool) -> list[Action]:
        """A member of some view is back, after its connection or the hub broke.

        `older`: it has not heard this hub, nor the one before with the same journal.
        """
        theirs = standing.member_of
        assert theirs is not None
        if theirs.number >= self._views.next and older:
            return self._gone(worker, "lost", "another hub has taken over without it", now)
        if theirs.number >= self._views.next:
            why = (
                f"worker {worker.name} is in view {theirs.number}, which this hub's journal does not know: "
                f"restart the hub on the folder of run {self.run}, or with --take-over where that is lost"
            )
            return self._refuse(worker, "ConfigurationError", why, now)
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
        opened = self._views.opened
        if standing.healed and (opened is None or standing.version.number >= opened.at):
            worker.entered = theirs.number
        actions += self._versions.acknowledge_again(worker.incarnation, standing.version)
        actions += self._views.catch_up(worker.incarnation)
        if not self._busy and (why := self._versions.untold([worker])):
            return actions + self._begin(now, planned=False, why=why)
        return actions + self._grant()

    def _learn(self, hello: Hello, standing: Standing, view: View, now: float) -> list[Action]:
        """A member tells the hub that takes over of the view that it is in, and of what is shared there."""
        if standing.healed and standing.version > self.version:
            self._versions.newest = standing.version
            self.ledger.restore((), standing.holdings)
        if hello.ready is not None:
            self.tensors, self.strategy = hello.ready.tensors, hello.ready.strategy
        if self.view is None or self.view.number < view.number:
            self.membership.adopt(view, now)
            self._recovering = now + self.membership.lease
            self.state, self.why = "changing", f"this hub takes over run {self.run}, at view {view.number}"
        heard = max(view.number, standing.view)  # of a hub beside this one: nothing older counts for it
        if self._views.follow(heard):
            self._recovering = now + self.membership.lease
        actions: list[Action] = []
        for worker in self.membership.outside():
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
        first = not self.superseded
        self.why = f"a newer hub serves run {self.run}, as worker {name} says: this one has no say any more"
        self.superseded, self.state = True, "stopped"
        everybody = {incarnation, *(w.incarnation for w in self.membership.living() if w.connected)}
        closed = [Close(who, self.why) for who in sorted(everybody)]
        return [Note("hub", "", self.why), *closed, End(False, self.why)] if first else [*closed]

    def _recovered(self, now: float) -> list[Action]:
        """A restarted hub goes on once every member it knew has reported, or its lease is over."""
        if self._recovering is None or self.state in ENDED:
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
        if why := self._versions.untold(members):
            return self._begin(now, planned=False, why=why)
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
        if self._barred_still(worker, now):
            return self._bar(worker, ready, now)
        kept = self._views.restore if self.view is None else None
        others = "the others" if kept is None else f"the checkpoint {kept.url}"
        if differs := difference(ready, self.tensors, self.strategy, others):
            return self._refuse(worker, "ModelError", f"worker {worker.name} {differs}", now)
        worker.state, worker.learned = "ready", ready.learned
        self._refused.discard(worker.name)
        if self._first_ready is None:
            self._first_ready = now
        return self._admit(now)

    def _bar(self, worker: WorkerStatus, ready: Ready, now: float) -> list[Action]:
        """It has lost its place for cuts before, and waits for another one."""
        known = worker.incarnation in self._barred
        self._barred[worker.incarnation] = ready
        wait = self._reach.barred(worker.name) - now
        text = f"worker {worker.name} was cut off again and again: it waits for a place for {wait:.0f} s"
        return [] if known else [Note("barred", worker.name, text)]

    def _let_in(self, now: float) -> list[Action]:
        """Who was barred, and has waited for long enough."""
        actions: list[Action] = []
        for incarnation, ready in list(self._barred.items()):
            worker = self.workers.get(incarnation)
            if worker is None or not self._barred_still(worker, now):
                del self._barred[incarnation]
                actions += self._ready(worker, ready, now) if worker is not None else []
        return actions

    def _barred_still(self, worker: WorkerStatus, now: float) -> bool:
        """Without members there is nobody whom it could hold up."""
        return now < self._reach.barred(worker.name) and bool(self.membership.survivors())

    def _admit(self, now: float) -> list[Action]:
        """Open the first view, or plan one for those who are ready, when all have entered the last."""
        ready = self.membership.candidates()
        if not ready or self._busy:
            return []
        if self.view is None:
            since = now if self._first_ready is None else self._first_ready
            missing, left = self.expected - len(self._refused) - len(ready), since + self.gather - now
            if missing > 0 and left > 0:
                self.why = f"waiting for {missing} of {self.expected} workers, at most {left:.0f} s more"
                return []
            kept = self._views.restore
            why = "the first view" if kept is None else f"the first view, from {kept.url}"
            begins = [w.incarnation for w in ready if kept is not None or not w.learned]
            if not begins:
                return self._end(False, UNHEARD)
            self.state, self.why = "training", ""
            return self._views.open(self.version.number, self.version, (begins[0],), why) + self._grant()
        if not self.membership.entered:
            return []
        names = ", ".join(w.name for w in ready)
        return self._begin(now, planned=True, why=f"worker {names} joins")

    def _refuse(self, worker: WorkerStatus, kind: str, why: str, now: float) -> list[Action]:
        told = refusal(worker.incarnation, worker.name, kind, why)
        if worker.state in ("healing", "member"):
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
        if not recovering and (text := self.membership.isolated(now)):
            actions.append(Note("hub", "", text))
        for worker, why in self.membership.overdue(now, recovering=recovering):
            actions += self._gone(worker, "lost", why, now)
        if self.state in ENDED:
            return actions
        cut = None if self._busy else self._reach.cut_off(self.membership, now)
        if cut is not None:
            self._reach.bar(cut[0].name, now, self.membership.lease)
        out = cut or (None if self._busy else hung(self.membership))
        if out is not None:
            actions += self._gone(out[0], "evicted", out[1], now)
        actions += self._let_in(now)
        actions += self._keep(now)  # before who has finished hears that it may go
        actions += self._versions.acknowledge() + self._admit(now)
        uneven = "" if self._busy else self._views.uneven(self.version)
        return actions + (self._begin(now, planned=True, why=uneven) if uneven else [])

    def _keep(self, now: float) -> list[Action]:
        """Have a member keep the state, where that is due."""
        if self.view is None or self._busy:
            return []
        line = f"{crc32(f'{self.run} {self.epoch}'.encode()):08x}"
        over = self._versions.over or self.ledger.done
        return self.checkpoints.keep(now, self.version, self.membership, line, over=over)

    def _unreadable(
        self, worker: WorkerStatus, url: str, why: str, instead: Kept | None, now: float
    ) -> list[Action]:
        """The state is not where the run was to go on from: it goes on from the checkpoint before."""
        restore = self._views.restore
        if restore is None or restore.url != url or self._views.change is not None or self.state in ENDED:
            return []
        instead = instead or self.checkpoints.fall_back(url)
        if instead is None:
            return self._end(False, f"{why}; and there is no whole one of this run before it")
        actions = self._go_back(instead, why, worker.name)
        return actions + self._begin(now, planned=False, why=self.why)

    def _go_back(self, kept: Kept, why: str, who: str = "") -> list[Action]:
        """What came after this checkpoint is lost."""
        self.checkpoints.last = kept
        self._views.go_back(kept)
        self.why = f"{why}; it goes on with version {kept.version}, from {kept.url}"
        return [Journal(Restored(kept.version, self.why)), Note("restored", who, self.why)]

    def _gone(
        self, worker: WorkerStatus, how: Literal["lost", "left", "evicted"], why: str, now: float
    ) -> list[Action]:
        involved = worker.state in ("healing", "member") or self._views.awaits(worker.incarnation)
        worker.state, worker.why = ("left" if how == "left" else "lost"), why
        told = f"worker {worker.name} {'left' if how == 'left' else f'is {how}'}: {why}"
        actions: list[Action] = [Note(how, worker.name, told)]
        if how != "left" and worker.connected:
            actions.append(Send(worker.incarnation, Evicted(why)))
        self._grants.forget(worker.incarnation)
        self._reach.report(worker.incarnation, (), now)
        if not involved or self.state in ENDED:
            return actions
        return actions + self._begin(now, planned=False, why=told)

    def _begin(self, now: float, *, planned: bool, why: str) -> list[Action]:
        """Start a view change: every member that lives says where it stands."""
        asked = self._views.begin(planned=planned, why=why)
        if not asked:
            return self._without_members(now, why)
        self.state, self.why = "changing", why
        return asked

    def _without_members(self, now: float, why: str) -> list[Action]:
        self._views.change = None
        gone = self.membership.members()
        if any(w.finished for w in gone) or self.ledger.done:
            said = sorted({w.why for w in gone if w.finished and w.why != FINISHED})
            return self._end(True, "every worker has finished" + "".join(f": {why}" for why in said[:1]))
        if gone and self.membership.learned and all(w.told for w in gone):
            kept = self.checkpoints.last
            where = f"is in {kept.url}" if kept and kept.version == self.version else "is not kept"
            text = f"every worker was told to end; version {self.version} was the last, and {where}"
            return self._end(True, text, "stopped")
        for worker in gone:
            self.ledger.release(worker.incarnation)
        if not self.membership.learned and not self._taking_over:
            self._views.close()
            self.state, self.why, self._first_ready = "waiting", why, now
            return []
        lost = f"version {self.version} is lost: every member that held it is gone (the last: {why})"
        if self._taking_over:
            lost = f"no worker with the state of run {self.run} has reported to this hub in {self.gather:g} s"
        kept = self.checkpoints.last
        if kept is None:
            remedy = "start a new run in another folder; with --checkpoint it would go on"
            return self._end(False, f"{lost}; {remedy}")
        self._taking_over = False
        self._views.close()
        self.state, self._first_ready = "waiting", now
        return self._go_back(kept, lost)

    def _end(self, ok: bool, why: str, state: Literal["", "stopped"] = "") -> list[Action]:
        self.state, self.why, self._views.change = state or ("finished" if ok else "failed"), why, None
        told: list[Action] = [
            Send(w.incarnation, Finished(why, ok)) for w in self.workers.values() if w.state not in GONE
        ]
        return [Note(self.state, "", why), *told, End(ok, why)]

    # --- changing the view -------------------------------------------------------------------------

    def _standing(self, worker: WorkerStatus, standing: Standing, now: float) -> list[Action]:
        change = self._views.change
        if change is None or standing.view != change.number or worker.incarnation not in change.waiting:
            return []
        actions: list[Action] = []
        for applied in standing.unacknowledged:
            actions += self._applied(worker, applied)
        if self._views.change is not change:  # a digest in it has cost somebody the place: all are asked anew
            return actions
        worker.applied = standing.version.number
        change.waiting.discard(worker.incarnation)
        change.standings[worker.incarnation] = standing
        return actions + (self._decide(change, now) if not change.waiting else [])

    def _decide(self, change: Change, now: float) -> list[Action]:
        """All who live have said where they stand."""
        if not change.holders:
            for who in change.standings:
                self.workers[who].state = "ready"
            return self._without_members(now, change.why)
        self.state, self.why = "training", ""
        actions = self._views.decide(change, takes_over=self._taking_over)
        self._taking_over = self._taking_over and change.planned  # a forced one has said where all stand
        return actions + self._grant()

    # --- versions and data -------------------------------------------------------------------------

    def _applied(self, worker: WorkerStatus, applied: Applied) -> list[Action]:
        # While it takes over nothing is adopted: the pool may go on from what another hub's members hold.
        actions, apart = self._versions.applied(worker, applied, adopts=not self._taking_over)
        for who, why in apart.items():
            if (other := self.workers[who]).state == "member":
                actions += self.checkpoints.doubt(other, applied.version.number, why)
                actions += self._gone(other, "evicted", why, other.last_heard)
        if self._views.change is None:
            self._versions.settle()
        return actions

    def _grant(self) -> list[Action]:
        """Answer whoever asked for data, as far as it can be decided now."""
        if self._busy:
            return []
        safe = self.checkpoints.last is not None or self.version == START
        return self._grants.answer(self._now, safe=safe, patience=self.gather if self.expected > 1 else 0.0)
