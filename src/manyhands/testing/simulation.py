"""The real decisions of hub and workers, under faults drawn from one seed, in virtual time.

`simulate(seed)` runs a whole training with symbolic values instead of tensors and checks the
invariants after every event. It raises `Violation`, with the seed and the last events, where one breaks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import xxhash

from manyhands._version import __version__
from manyhands.core import moves
from manyhands.core.checkpoints import Plan as KeepingPlan
from manyhands.core.coordinator import EPOCH_BITS, Coordinator
from manyhands.core.decisions import Connected, Disconnected, End, Received, Send, Ticked
from manyhands.core.holding import Holding
from manyhands.core.messages import (
    START,
    Acknowledged,
    Applied,
    Asked,
    Beat,
    Contribution,
    Dataset,
    Evicted,
    Finished,
    Freeze,
    Hello,
    Kept,
    Leased,
    Left,
    Opened,
    Proposed,
    Ready,
    Save,
    Saved,
    SavedHolding,
    Standing,
    ToHub,
    ToWorker,
    Version,
    Welcome,
)
from manyhands.core.rounds import Participant, Verdict, subset_of
from manyhands.testing.network import Channel, Clock

Value = tuple[Any, ...]


class Violation(AssertionError):
    """An invariant broke; the message has the seed and the last events."""


@dataclass(frozen=True)
class Plan:
    """What a run is like. `length`: samples of one epoch; `faults`: how many, within `seconds`.

    `keeps`: how many versions lie between two checkpoints, 0 for none.
    Chances: `loss` and `twice` for a message between peers, `rejects` for a contribution with a NaN.
    """

    workers: int
    segments: int
    length: int
    epochs: int
    batch: int
    every: int
    shares_buffer: bool
    faults: int
    seconds: float = 6.0
    loss: float = 0.03
    twice: float = 0.03
    rejects: float = 0.0
    hosts: int = 0
    keeps: int = 0
    order: Literal["dynamic", "static"] = "dynamic"

    @classmethod
    def draw(cls, random: Random) -> Plan:
        """A small run."""
        return cls(
            workers=random.randint(2, 5),
            segments=random.randint(1, 3),
            length=random.randint(12, 60),
            epochs=random.randint(1, 2),
            batch=random.randint(1, 4),
            every=random.randint(1, 3),
            shares_buffer=random.random() < 0.5,
            faults=random.randint(0, 6),
            loss=random.choice((0.0, 0.03, 0.1)),
            twice=random.choice((0.0, 0.05)),
            rejects=random.choice((0.0, 0.0, 0.1)),
            order=random.choice(("dynamic", "dynamic", "static")),
            hosts=random.randint(0, 3),
            keeps=random.choice((0, 0, 1, 5)),
        )


@dataclass(frozen=True)
class Result:
    """How a run ended. `kind`: "finished", or "lost" where all who held the newest version were killed."""

    kind: str
    version: Version
    seconds: float
    events: int
    views: int


@dataclass(frozen=True)
class Snapshot:
    view: int
    version: Version
    state: int
    chain: tuple[Version, ...]
    holding: SavedHolding
    flipped: int


@dataclass(frozen=True)
class Commit:
    """What a version is made of, the same for all who adopt it."""

    parent: int
    contributions: tuple[Contribution, ...]
    content: Value

    @property
    def state(self) -> int:
        return xxhash.xxh3_64_intdigest(f"{self.parent} {self.contributions} {self.content}".encode())


class Worker:
    """One process: a participant, what it holds of the data, and a tiny training loop."""

    def __init__(self, world: Simulation, name: str) -> None:
        self.world, self.name, self.plan = world, name, world.plan
        self.random = world.random
        self.alive, self.left = True, False
        self.epoch = 0
        self.state, self.chain = 0, tuple[Version, ...]()
        self.flipped = 0
        self.line = self.random.choice((1e6, 1e7, 1e7))
        self.holding = Holding(world.dataset)
        self.born()
        self.later(self.random.random() * 0.3, self.connect)
        self.later(self.random.random() * 0.2, self.work)
        self.later(0.5, self.beat)

    def born(self) -> None:
        """A new incarnation."""
        self.incarnation = self.world.name(self)
        self.part = Participant(self.incarnation, self.plan.segments, shares_buffer=self.plan.shares_buffer)
        self.stash: deque[tuple[moves.Event, Value]] = deque()
        self.link = 0
        self.evicted, self.waiting, self.answered = False, False, True
        self.healing: moves.Heal | None = None
        self.tries = 0
        self.steps, self.frozen_view = 0, 0
        self.unacknowledged: dict[int, Applied] = {}
        self.parts: dict[tuple[int, int], Value] = {}
        self.gathered: dict[tuple[int, int], Value] = {}
        self.vector: dict[int, Value] = {}
        self.spoilt: dict[tuple[int, int], int] = {}
        self.asked_at = -9.0
        self.wanted: list[tuple[str, int, int]] = []
        self.order: Save | None = None
        self.weight = 0.0
        self.reported = 0

    @property
    def digest(self) -> str:
        """Of the state; `flipped` names the wrong bits in it, and 0 is right."""
        return f"{self.state:x}-{self.flipped}"

    @property
    def machine(self) -> str:
        """Workers take turns on the hosts; each has one of its own where the plan has none."""
        return f"host {int(self.name) % self.plan.hosts}" if self.plan.hosts else ""

    @property
    def version(self) -> Version:
        """What the state is; behind `part.version` while the actions before a commit are carried out."""
        return self.chain[-1] if self.chain else START

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.world.clock.after(seconds, lambda: what() if self.alive and not self.left else None)

    # --- the control connection --------------------------------------------------------------------

    def connect(self) -> None:
        if self.link:
            return
        if not self.world.hub_up or self.random.random() < 0.1:
            self.later(0.1, self.connect)
            return
        self.link = self.world.link(self)
        member = self.part.view is not None
        self.say(
            Hello(
                "sim",
                self.incarnation,
                self.name,
                1,
                "h",
                1,
                __version__,
                standing=self.standing(self.frozen_view) if member else None,
                datasets=(self.world.dataset,),
                ready=Ready((), "s"),
                machine=self.machine,
                epoch=self.epoch,
            )
        )

    def cut(self) -> None:
        if self.link:
            self.world.unlink(self.link)
            self.link = 0
            self.later(0.05 + self.random.random() * 0.3, self.connect)

    def say(self, message: ToHub) -> None:
        if self.link:
            self.world.to_hub(self.link, self.incarnation, message)

    def beat(self) -> None:
        self.say(Beat(unreachable=self.world.unreachable(self), line=self.line))
        self.tell(moves.Overdue())
        self.later(0.5, self.beat)

    def standing(self, view: int) -> Standing:
        part = self.part
        return Standing(
            view,
            part.version,
            part.version.number if part.stops_at is None else part.stops_at,
            self.holding.held(),
            tuple(self.unacknowledged.values()),
            part.view,
            part.phase in ("member", "rolling"),
            part.replays,
            (self.holding.save(),),
        )

    def heard(self, message: ToWorker) -> None:
        match message:
            case Leased(_, epoch, spans):
                self.answered = bool(spans)
                if self.holding.epoch == epoch:
                    self.holding.leased(spans)
            case Acknowledged(number):
                self.unacknowledged = {n: a for n, a in self.unacknowledged.items() if n > number}
            case Evicted(why):
                self.evicted = True
                self.tell(moves.Out(why))
            case Finished():
                self.left = True
            case Welcome():
                self.epoch = max(self.epoch, message.epoch)
            case Save():
                self.order = message
            case Freeze() | Opened():
                self.tell(message)
            case _:
                pass

    # --- the one loop ------------------------------------------------------------------------------

    def tell(self, event: moves.Event, value: Value = ()) -> None:
        if not self.alive or self.left:
            return
        self.stash.append((event, value))
        moved = True
        while moved:
            moved = False
            for _ in range(len(self.stash)):
                event, value = self.stash.popleft()
                verdict = self.verdict(event)
                if verdict is Verdict.LATER:
                    self.stash.append((event, value))
                else:
                    moved = True
                    if isinstance(event, moves.Arrived) and verdict is Verdict.ACCEPT:
                        self.place(event, value)
                    self.perform(self.part.handle(event))

    def verdict(self, event: moves.Event) -> Verdict:
        if isinstance(event, moves.Arrived):
            return self.part.verdict(event.view, event.base, event.kind)
        if isinstance(event, moves.Heard):
            proposed = isinstance(event.message, Proposed)
            base = event.message.base if isinstance(event.message, Proposed) else 0
            return self.part.verdict(event.message.view, base, "proposed" if proposed else "message")
        return Verdict.ACCEPT

    def place(self, event: moves.Arrived, value: Value) -> None:
        view = self.part.view
        rank = view.rank(event.sender) if view else None
        if rank is None:
            return
        match event.kind:
            case "contribution":
                self.inbox(event.view, event.base)[event.segment, event.slice, rank] = value
            case "combined":
                self.land(event.segment, event.slice, value)
            case "whole":
                self.vector[event.segment] = value

    def inbox(self, view: int, base: int) -> dict[tuple[int, int, int], Value]:
        key = (view, base)
        if getattr(self, "_inbox_of", None) != key:
            self._inbox_of, self._inbox = key, dict[tuple[int, int, int], Value]()
        return self._inbox

    def land(self, segment: int, rank: int, value: Value) -> None:
        assert self.part.view is not None
        self.parts[segment, rank] = value
        self.vector.pop(segment, None)
        if self.plan.shares_buffer:
            self.spoilt[segment, rank] = self.part.view.number

    def own(self, view: int, segment: int, rank: int) -> Value:
        """Slice `rank` of the own contribution, as it lies in the buffer now."""
        spoilt = any(s == segment and (v != view or r == rank) for (s, r), v in self.spoilt.items())
        return (self.incarnation, self.version, segment, rank, self.weight, "bad" if spoilt else "")

    def perform(self, actions: list[moves.Action]) -> None:
        part = self.part
        for action in actions:
            members = part.view.members if part.view else ()
            match action:
                case moves.SendContribution(view, base, segment, weight, to):
                    subset = subset_of((part.rank,))
                    for slice_, rank in to:
                        news = moves.Arrived(
                            "contribution", self.incarnation, view, base, segment, slice_, weight, subset
                        )
                        own = (self.own(view, segment, slice_),)
                        self.world.to_peer(self, members[rank].incarnation, news, own)
                case moves.SendGathered(view, base, segment, slice_, weight, subset):
                    news = moves.Arrived(
                        "contribution", self.incarnation, view, base, segment, slice_, weight, subset
                    )
                    self.world.to_peer(
                        self, members[slice_].incarnation, news, self.gathered[segment, slice_]
                    )
                case moves.Combine():
                    self.later(self.random.random() * 0.01, lambda a=action: self.combine(a))  # type: ignore[misc]
                case moves.SendCombined(view, base, segment, slice_, subset, ranks):
                    if base == self.version.number:
                        value = self.parts.get((segment, slice_), ("nothing",))
                    else:
                        whole = self.vector.get(segment)
                        value = whole[slice_] if whole else ("overwritten",)
                    news = moves.Arrived(
                        "combined", self.incarnation, view, base, segment, slice_, subset=subset
                    )
                    for rank in ranks:
                        self.world.to_peer(self, members[rank].incarnation, news, value)
                case moves.SendWhole(view, base, segment, to):
                    news = moves.Arrived("whole", self.incarnation, view, base, segment)
                    self.world.to_peer(self, to, news, self.vector.get(segment, ("overwritten",)))
                case moves.Tell(to, message):
                    for peer in to:
                        self.world.to_peer(self, peer, moves.Heard(self.incarnation, message), ())  # type: ignore[arg-type]
                case moves.Commit():
                    self.commit(action)
                case moves.Stand(view):
                    self.frozen_view = view
                    self.say(self.standing(view))
                case moves.Heal():
                    self.healing, self.tries = action, 0
                    self.later(0.0, self.fetch)
                case moves.Refill():
                    self.later(self.random.random() * 0.05, self.refill)
                case moves.Report(message):
                    self.say(message)
                case moves.Replaced():
                    self.waiting, self.steps = False, 0
                case moves.Join():
                    self.parts = {}

    def refill(self) -> None:
        if self.part.refilling and self.waiting:
            self.spoilt = {}
            for segment in range(self.plan.segments):
                self.tell(moves.Ready(segment, self.weight))

    def combine(self, action: moves.Combine) -> None:
        part = self.part
        if part.verdict(action.view, action.base, "combined") is not Verdict.ACCEPT:
            return
        view, segment, slice_ = action.view, action.segment, action.slice
        if part.round.reduced.get((segment, slice_)) != action.subset:
            return
        inbox = self.inbox(view, action.base)
        values: Value = ()
        for rank in action.ranks:
            values += (
                (self.own(view, segment, slice_),) if rank == part.rank else inbox[segment, slice_, rank]
            )
        if slice_ == part.rank:
            self.land(segment, slice_, tuple(sorted(values, key=repr)))
        else:
            self.gathered[segment, slice_] = values
        self.tell(moves.Combined(view, action.base, segment, slice_, action.subset))

    def commit(self, action: moves.Commit) -> None:
        size, segments = len(action.contributions), range(self.plan.segments)
        base = self.version
        if action.own:
            self.vector = {s: (((self.incarnation, base, s, 0, self.weight, ""),),) for s in segments}
        elif action.weight:
            for s in segments:
                if s not in self.vector:
                    self.vector[s] = tuple(self.parts.get((s, r), ("nothing",)) for r in range(size))
        content = tuple(self.vector[s] for s in segments) if action.weight else ()
        counted = [c for c in action.contributions if c.weight > 0]
        right = tuple(
            tuple(
                tuple(sorted(((c.incarnation, base, s, r, c.weight, "") for c in counted), key=repr))
                for r in range(size)
            )
            for s in segments
        )
        if action.weight and content != right:
            raise Violation(f"I2: {self.incarnation} combined {content}")
        made = Commit(self.state, action.contributions, content)
        self.world.adopted(self, action.version, made)
        self.state, self.chain = made.state, (*self.chain, action.version)
        self.holding.commit(action.contributions)
        applied = Applied(action.version, self.digest, action.contributions)
        self.unacknowledged[action.version.number] = applied
        self.waiting, self.steps = False, 0
        self.parts, self.spoilt = {}, {}
        self.later(self.random.random() * 0.05, lambda: self.report(action.version.number))

    def report(self, number: int) -> None:
        applied = self.unacknowledged.get(number)
        self.reported = max(self.reported, number)
        if applied is not None and self.part.view is not None:
            contributions = applied.contributions if self.part.rank == 0 else None
            self.say(Applied(applied.version, applied.digest, contributions))

    # --- healing -----------------------------------------------------------------------------------

    def fetch(self) -> None:
        healing = self.healing
        if healing is None or self.part.phase != "healing":
            return
        if healing.restore:
            saved = replace(self.world.kept[healing.restore], view=healing.view.number)
            self.later(self.random.random() * 0.3, lambda: self.install(saved))
            return
        source = healing.sources[self.tries % len(healing.sources)]
        self.tries += 1
        self.world.ask(self, source, healing.view.number, healing.at)
        self.later(0.3, lambda: self.fetch() if self.healing is healing else None)

    def donate(self) -> None:
        part, kept = self.part, list[tuple[str, int, int]]()
        for who, view, at in self.wanted:
            if (
                part.view is None
                or part.phase != "member"
                or view > part.view.number
                or at > part.version.number
            ):
                kept.append((who, view, at))
            elif view == part.view.number and at == part.version.number:
                self.world.give(self, who, self.snapshot(view))
        self.wanted = kept

    def install(self, saved: Snapshot) -> None:
        if self.healing is None or self.healing.view.number != saved.view or self.part.phase != "healing":
            return
        self.healing, self.reported = None, saved.version.number
        self.state, self.chain, self.flipped = saved.state, saved.chain, saved.flipped
        self.holding.reclaim()
        self.holding.load(saved.holding)
        self.tell(moves.Installed(saved.version))

    # --- the script --------------------------------------------------------------------------------

    def work(self) -> None:
        self.later(0.02 + self.random.random() * 0.15, self.work)
        if self.evicted:
            self.holding.forget()
            if self.link:
                self.world.unlink(self.link)
            self.born()
            self.connect()
            return
        self.donate()
        if self.waiting or self.part.phase != "member":
            return
        holding = self.holding
        if (self.plan.shares_buffer or holding.done) and not self.part.settled:
            return
        if holding.done and self.reported < self.part.version.number:
            return
        if holding.done:
            for applied in self.unacknowledged.values():
                self.say(applied)
            self.say(Left(True, "done"))
            if self.link:
                self.left = True
            return
        if holding.queued < 2 * self.plan.batch and self.world.clock.now - self.asked_at > 0.3:
            self.asked_at = self.world.clock.now
            self.say(Asked(0, holding.epoch, 2 * self.plan.batch))
        if holding.queue:
            holding.take(self.plan.batch)
            self.steps += 1
            if self.steps < self.plan.every and not self.part.hurry:
                return
        elif self.answered and not holding.taken:
            if self.part.hurry:
                self.propose()
            return
        if holding.taken or self.part.called:
            self.propose()

    def snapshot(self, view: int) -> Snapshot:
        return Snapshot(view, self.part.version, self.state, self.chain, self.holding.save(), self.flipped)

    def keep(self) -> None:
        """Keep the state where the hub wants it: a copy now, and some time to write it."""
        order, self.order = self.order, None
        if order is None or self.part.phase != "member":
            return
        saved, url = self.snapshot(0), f"{order.url}/{order.serial}"

        def written() -> None:
            self.world.note(f"KEPT {saved.version} by {self.incarnation}")
            self.world.kept[url] = saved
            self.say(Saved(order.serial, Kept(url, saved.version, (saved.holding,))))

        self.later(self.random.random() * 0.5, written)

    def propose(self) -> None:
        self.keep()
        spans, rejected = self.holding.propose(), ""
        if spans and self.random.random() < self.plan.rejects:
            self.holding.withdraw()
            spans, rejected = (), "it has a NaN"
        self.weight = float(sum(map(len, spans)))
        contribution = Contribution(self.incarnation, self.weight, spans, rejected=rejected)
        self.waiting = True
        version, view = self.part.version, self.incarnation
        if self.weight and self.plan.shares_buffer:
            self.vector, self.spoilt = {}, {}
        segments = list(range(self.plan.segments)) if self.weight else []
        self.random.shuffle(segments)

        def on() -> None:
            if self.part.version != version or self.incarnation != view or not self.waiting:
                return
            if segments:
                self.tell(moves.Ready(segments.pop(), self.weight))
                self.later(self.random.random() * 0.02, on)
            elif self.part.refilling:
                self.later(0.02, on)
            else:
                self.tell(moves.Propose(contribution))

        on()


class Simulation:
    """A hub, its workers, the network between them, and the faults of one seed."""

    LIMIT = 120.0
    EVENTS = 40_000

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.seed, self.random = seed, Random(seed)
        self.plan = plan or Plan.draw(self.random)
        self.clock = Clock()
        self.dataset = Dataset(0, self.plan.length, self.plan.batch, self.plan.epochs, self.plan.order, 0)
        self.hub = Coordinator("sim", self.plan.workers, 2.0, gather=3.0)
        self.hub_up, self.blob, self.ended = True, b"", ""
        self.links: dict[int, tuple[Worker, str, Channel, Channel]] = {}
        self.peers: dict[tuple[str, str], Channel] = {}
        self.of: dict[str, Worker] = {}
        self.history: dict[Version, Commit] = {}
        self.severed_until: dict[frozenset[str], float] = {}
        self.reports: dict[str, tuple[Version, str]] = {}
        self.log: deque[tuple[float, tuple[object, ...]]] = deque(maxlen=60)
        self.names, self.count = 0, 0
        self.kept: dict[str, Snapshot] = {}
        self.hub.checkpoints.plan = self.keeping
        self.why = ""
        self.workers = [Worker(self, str(i)) for i in range(self.plan.workers)]
        for _ in range(self.plan.faults):
            self.clock.at(0.3 + self.random.random() * self.plan.seconds, self.fault)
        self.clock.after(0.1, self.tick)

    @property
    def keeping(self) -> KeepingPlan | None:
        return KeepingPlan("kept", versions=self.plan.keeps) if self.plan.keeps else None

    # --- plumbing ----------------------------------------------------------------------------------

    def name(self, worker: Worker) -> str:
        self.names += 1
        incarnation = f"{worker.name}#{self.names}"
        self.of[incarnation] = worker
        return incarnation

    def living(self, incarnation: str) -> Worker | None:
        worker = self.of.get(incarnation)
        good = worker is not None and worker.alive and not worker.left and worker.incarnation == incarnation
        return worker if good else None

    def link(self, worker: Worker) -> int:
        self.names += 1
        up, down = (Channel(self.clock, self.random, fifo=True) for _ in range(2))
        self.links[self.names] = (worker, worker.incarnation, up, down)
        return self.names

    def unlink(self, number: int) -> None:
        _, incarnation, _, _ = self.links.pop(number)
        if not any(who == incarnation for _, who, _, _ in self.links.values()):
            self.decide(Disconnected(incarnation))

    def to_hub(self, number: int, incarnation: str, message: ToHub) -> None:
        last = isinstance(message, Left)

        def deliver() -> None:
            if (number in self.links or last) and self.hub_up:
                event = Connected(message) if isinstance(message, Hello) else Received(incarnation, message)
                self.decide(event)

        self.links[number][2].send(deliver)

    def to_peer(self, sender: Worker, to: str, event: moves.Event, value: Value) -> None:
        def deliver() -> None:
            worker = self.living(to)
            if worker is not None and not self.severed(sender.name, worker.name):
                self.note(to, "<-", event, value)
                worker.tell(event, value)

        self._peer(sender.incarnation, to, deliver)

    def _peer(self, sender: str, to: str, deliver: Callable[[], None]) -> None:
        channel = self.peers.get((sender, to))
        if channel is None:
            plan = self.plan
            channel = Channel(self.clock, self.random, fifo=False, loss=plan.loss, twice=plan.twice)
            self.peers[sender, to] = channel
        channel.send(deliver)

    def ask(self, worker: Worker, source: str, view: int, at: int) -> None:
        me = worker.incarnation

        def deliver() -> None:
            donor = self.living(source)
            if donor is not None and not self.severed(worker.name, donor.name):
                donor.wanted.append((me, view, at))

        self._peer(me, source, deliver)

    def give(self, donor: Worker, to: str, saved: Snapshot) -> None:
        def deliver() -> None:
            worker = self.living(to)
            if worker is not None and not self.severed(donor.name, worker.name):
                worker.install(saved)

        self._peer(donor.incarnation, to, deliver)

    def note(self, *what: object) -> None:
        """Remember for the story; it is only written down when something breaks."""
        self.log.append((self.clock.now, what))

    # --- the hub -----------------------------------------------------------------------------------

    def tick(self) -> None:
        if self.hub_up:
            self.decide(Ticked())
        if self.hub_up and not self.hub.workers and all(worker.left for worker in self.workers):
            self.ended = self.ended or "finished"  # before this hub came, so it has heard of nobody
        self.clock.after(0.1, self.tick)

    def decide(self, event: Connected | Received | Disconnected | Ticked) -> None:
        if not self.hub_up or self.ended:
            return
        if not isinstance(event, Ticked):
            self.note("hub <-", event)
        before = self.hub.version
        actions = self.hub.handle(event, self.clock.now)
        if self.hub.version.number < before.number:
            holders = [
                w.incarnation
                for w in self.workers
                if w.alive
                and before in w.chain
                and (s := self.hub.workers.get(w.incarnation)) is not None
                and s.state == "member"
            ]
            self.check(not holders, f"I4: from {before} to {self.hub.version}, and {holders} hold it")
        if isinstance(event, Received) and isinstance(event.message, Applied):
            self.reports[event.incarnation] = (event.message.version, event.message.digest)
            self.check_digests()
        for action in actions:
            match action:
                case Send(incarnation, message):
                    self.note(incarnation, "<~ hub", message)
                    self._say(incarnation, message)
                case End(ok, why):
                    self.ended, self.why = ("finished" if ok else "lost"), why
                case _:
                    pass

    def _say(self, incarnation: str, message: ToWorker) -> None:
        for number, (worker, who, _, down) in reversed(self.links.items()):
            if who == incarnation:

                def deliver(worker: Worker = worker, number: int = number) -> None:
                    if number in self.links and self.living(incarnation) is worker:
                        self.note(incarnation, "<- hub", message)
                        worker.heard(message)

                down.send(deliver)
                return

    # --- faults ------------------------------------------------------------------------------------

    def fault(self) -> None:
        kind = self.random.choice(
            ("kill", "kill", "kill", "cut", "cut", "cut", "hub", "flip", "sever", "lost hub")
        )
        worker = self.random.choice(self.workers)
        if kind in ("hub", "lost hub"):
            self.kill_hub(0.1 + self.random.random() * 1.5, keeps_journal=kind == "hub")
        elif kind == "kill":
            self.kill(worker, 0.2 + self.random.random() * 2.0)
        elif kind == "flip":
            self.flip(worker)
        elif kind == "sever":
            self.sever(worker, self.random.choice(self.workers), self.random.random() * 8.0)
        else:
            self.note(f"cut {worker.name}")
            worker.cut()

    def kill(self, worker: Worker, back: float | None) -> None:
        """`kill -9` of a worker; a fresh process of that name comes after `back` seconds."""
        if not worker.alive or worker.left:
            return
        self.note(f"KILL {worker.incarnation} at {worker.part.version}")
        worker.alive = False
        if worker.link:
            self.unlink(worker.link)
            worker.link = 0
        if back is not None:
            self.clock.after(back, lambda: self.start(worker.name))

    def start(self, name: str) -> None:
        self.note(f"START {name}")
        self.workers = [w for w in self.workers if w.name != name]
        self.workers.append(Worker(self, name))

    def sever(self, one: Worker, other: Worker, seconds: float) -> None:
        """Cut the line between two workers, both ways, for a time; each still reaches the hub."""
        if one is not other:
            self.note(f"SEVER {one.name} and {other.name} for {seconds:.1f} s")
            pair = frozenset((one.name, other.name))
            self.severed_until[pair] = max(self.severed_until.get(pair, 0.0), self.clock.now + seconds)

    def severed(self, one: str, other: str) -> bool:
        return self.clock.now < self.severed_until.get(frozenset((one, other)), 0.0)

    def unreachable(self, worker: Worker) -> tuple[str, ...]:
        """The members that this one cannot reach just now."""
        members = worker.part.view.members if worker.part.view else ()
        return tuple(m.incarnation for m in members if self.severed(worker.name, m.name))

    def flip(self, worker: Worker) -> None:
        """A bit of a worker's state turns over."""
        if worker.chain:
            self.names += 1
            worker.flipped = self.names
            self.note(f"FLIP {worker.incarnation} at {worker.version}")

    def kill_hub(self, back: float, *, keeps_journal: bool = True) -> None:
        """`kill -9` of the hub, which comes back with its journal (I7), or another without one takes over."""
        if not self.hub_up or self.ended:
            return
        self.note("KILL hub")
        self.hub_up, self.blob = False, self.hub.snapshot()
        for worker, _, _, _ in list(self.links.values()):
            worker.link = 0
            worker.later(0.1 + self.random.random() * 0.2, worker.connect)
        self.links = {}
        self.clock.after(back, self.revive_hub if keeps_journal else self.replace_hub)

    def revive_hub(self) -> None:
        self.note("START hub")
        self.hub, self.hub_up = Coordinator.restore(self.blob), True
        self.hub.checkpoints.plan = self.keeping

    def replace_hub(self) -> None:
        """A hub that knows nothing takes over."""
        self.note("START another hub")
        self.reports = {}  # it has heard none of them: other bits show with the next version
        self.hub, self.hub_up = Coordinator("sim", self.plan.workers, 2.0, gather=3.0), True
        self.hub.take_over(self.random.getrandbits(EPOCH_BITS))
        self.hub.checkpoints.plan = self.keeping

    # --- the invariants ----------------------------------------------------------------------------

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(what)

    def adopted(self, worker: Worker, version: Version, made: Commit) -> None:
        self.note("COMMIT", worker.incarnation, version, made.contributions)
        known = self.history.setdefault(version, made)
        if known != made:
            raise Violation(f"I1: {worker.incarnation} made {version} of {made}, others of {known}")

    def check_digests(self) -> None:
        """Once all members have reported one version, those who stay reported one digest."""
        members = self.hub.view.members if self.hub.view else ()
        reports = {m.incarnation: self.reports.get(m.incarnation, (START, "")) for m in members}
        staying = {r for who, r in reports.items() if self.hub.workers[who].state == "member"}
        whole = len({version for version, _ in reports.values()}) == 1
        self.check(not whole or len(staying) <= 1, f"I2: {reports}, and all stay")

    def finished(self) -> bool:
        return bool(self.ended)

    def run(self) -> Result:
        """Until the run ends; raises `Violation` with the story."""
        try:
            while not self.finished():
                self.clock.step()
                self.count += 1
                if self.clock.now > self.LIMIT or self.count > self.EVENTS:
                    raise Violation(f"I5: no end; hub {self.hub.state}, {self.hub.why}, {self.hub.version}")
            self.end()
        except Exception as error:
            story = "\n  ".join(f"{at:.3f} {' '.join(map(str, what))}" for at, what in self.log)
            raise Violation(f"seed {self.seed}, {self.plan}: {error!r}\n  {story}") from error
        return Result(
            self.ended,
            self.hub.version,
            self.clock.now,
            self.count,
            self.hub.view.number if self.hub.view else 0,
        )

    def end(self) -> None:
        if self.ended == "lost":
            holders = [
                w.incarnation
                for w in self.workers
                if self.living(w.incarnation)
                and w.part.version == self.hub.version != START
                and not w.evicted
            ]
            self.check(not holders, f"I4: {self.why}; but {holders} hold it")
            return
        done = [w for w in self.workers if w.holding.done]
        for worker in done:
            read = sorted(
                (span.epoch, position)
                for version in worker.chain
                for contribution in self.history[version].contributions
                for span in contribution.spans
                for position in range(span.start, span.stop)
            )
            wanted = [(e, i) for e in range(self.plan.epochs) for i in range(self.plan.length)]
            self.check(read == wanted, f"I3: {worker.incarnation} has {read}")
        if not self.hub.workers:
            return
        progress = self.hub.ledger.progress(0)
        total = self.plan.length * self.plan.epochs
        self.check(
            progress.twice == 0 and progress.total_committed == total, f"I3: the ledger says {progress}"
        )


def simulate(seed: int, plan: Plan | None = None) -> Result:
    """One run under the faults of this seed; raises `Violation` where an invariant breaks."""
    return Simulation(seed, plan).run()
