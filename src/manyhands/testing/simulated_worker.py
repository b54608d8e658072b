"""A worker process of a simulation: the real participant, what it holds of the data, a tiny training loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Protocol

import xxhash

from manyhands._version import __version__
from manyhands.core import moves
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
    Followed,
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
    Span,
    Standing,
    ToHub,
    ToWorker,
    Version,
    View,
    Welcome,
)
from manyhands.core.rounds import Participant, Verdict, subset_of
from manyhands.core.shuffle import Shuffle
from manyhands.testing.network import Clock, Cuts, Stream
from manyhands.testing.plan import Plan, Violation
from manyhands.testing.simulated_hub import LEASE, Link, SimulatedHub

Value = tuple[Any, ...]


@dataclass(frozen=True)
class Commit:
    """What a version is made of, the same for all who adopt it; `members` of the view that committed it."""

    version: Version
    members: tuple[str, ...]
    parent: int
    contributions: tuple[Contribution, ...]
    content: Value

    @property
    def state(self) -> int:
        return xxhash.xxh3_64_intdigest(f"{self.parent} {self.version} {self.contributions}".encode())


@dataclass(frozen=True)
class Snapshot:
    view: int
    version: Version
    state: int
    chain: tuple[Commit, ...]
    holding: SavedHolding
    flipped: int


class World(Protocol):
    """What a worker meets."""

    plan: Plan
    random: Random
    clock: Clock
    cuts: Cuts
    dataset: Dataset
    hubs: dict[str, SimulatedHub]
    places: tuple[str, ...]
    kept: dict[str, Snapshot]
    failed: set[int]

    def name(self, worker: Worker) -> str: ...
    def unreachable(self, worker: Worker) -> tuple[str, ...]: ...
    def to_peer(self, sender: Worker, to: str, event: moves.Event, value: Value) -> None: ...
    def ask(self, worker: Worker, source: str, view: int, at: int) -> None: ...
    def give(self, donor: Worker, to: str, saved: Snapshot) -> None: ...
    def ends(self, worker: Worker, back: float | None) -> None: ...
    def adopted(self, worker: Worker, made: Commit) -> None: ...
    def note(self, *what: object) -> None: ...


class Worker:
    """One process: a participant, what it holds of the data, and a tiny training loop."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.plan = world, name, world.plan
        self.random = world.random
        self.alive, self.left, self.told = True, False, False
        self.epoch = 0
        self.state, self.chain = 0, tuple[Commit, ...]()
        self.flipped, self.patience = 0, 300
        self.line = self.random.choice((1e6, 1e7, 1e7))
        self.holding = Holding(world.dataset)
        self.born()
        self.later(self.random.random() * 0.3, self.connect)
        self.later(self.random.random() * 0.2, self.work)
        self.later(0.5, self.beat)
        self.later(self.random.random() * LEASE, self.compare)

    def born(self) -> None:
        """A new incarnation."""
        self.incarnation = self.world.name(self)
        self.part = Participant(self.incarnation, self.plan.segments, shares_buffer=self.plan.shares_buffer)
        self.stash: deque[tuple[moves.Event, Value]] = deque()
        self.urls = deque(self.world.places)
        self.link: Link | None = None
        self.unsaid: list[ToHub] = []
        self.views: dict[int, View] = {}
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
        return self.chain[-1].version if self.chain else START

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.world.clock.after(seconds, lambda: what() if self.alive and not self.left else None)

    # --- the control connection --------------------------------------------------------------------

    def connect(self) -> None:
        """Dial the hubs in turn, as `worker.control` does."""
        if self.link is not None:
            return
        world, place = self.world, self.urls[0]
        hub = world.hubs.get(place)
        if hub is None or not hub.up or not world.cuts.both(self.name, place) or self.random.random() < 0.1:
            self.urls.rotate(-1)
            self.later(0.1, self.connect)
            return
        up = Stream(world.clock, self.random, world.cuts, self.name, place)
        down = Stream(world.clock, self.random, world.cuts, place, self.name)
        self.link = Link(self, self.incarnation, hub, up, down, answered=world.clock.now)
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
                datasets=(world.dataset,),
                ready=Ready((), "s", bool(self.chain)),
                machine=self.machine,
                epoch=self.epoch,
            )
        )
        unsaid, self.unsaid = self.unsaid, []
        for message in unsaid:
            self.say(message)

    def hang_up(self) -> None:
        """Close the connection, and dial again."""
        if self.link is not None:
            self.link.close()
            self.closed(self.link)

    def closed(self, link: Link) -> None:
        if link is not self.link:
            return
        self.link = None
        if not link.spoken and self.urls[0] == link.hub.place:
            self.urls.rotate(-1)
        self.later(0.05 + self.random.random() * 0.3, self.connect)

    def compare(self) -> None:
        """Ask the hubs that are not followed for their epoch, as `worker.other_hubs` does."""
        self.later(LEASE, self.compare)
        link = self.link
        if link is None:
            return
        for place, hub in self.world.hubs.items():
            if hub is not link.hub and hub.up and self.world.cuts.both(self.name, place):
                theirs = hub.compare(Followed("sim", self.incarnation, self.name, self.epoch))
                if theirs > self.epoch and self.link is link:
                    self.urls.rotate(-self.urls.index(place))
                    self.hang_up()

    def say(self, message: ToHub) -> None:
        if self.link is not None:
            self.link.say(message)
        elif isinstance(message, Saved):
            self.unsaid.append(message)

    def beat(self) -> None:
        if self.link is not None:
            if self.world.cuts.both(self.name, self.link.hub.place):
                self.link.answered = self.world.clock.now
            elif self.world.clock.now > self.link.answered + LEASE:
                self.hang_up()
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
            tuple(self.unacknowledged.values())[-self.plan.recalls :],
            part.view,
            part.phase in ("member", "rolling"),
            part.replays,
            (self.holding.save(),),
        )

    def heard(self, link: Link, message: ToWorker) -> None:
        if link is not self.link or not self.alive or self.left:
            return
        self.world.note(self.incarnation, "<-", link.hub.place, message)
        match message:
            case Leased(_, epoch, spans, skipped):
                self.answered = bool(spans)
                if self.holding.epoch == epoch:
                    self.holding.leased(spans, skipped)
            case Acknowledged(number):
                self.unacknowledged = {n: a for n, a in self.unacknowledged.items() if n > number}
            case Evicted(why):
                self.evicted = True
                self.tell(moves.Out(why))
            case Finished():
                self.left = True
                link.close()
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
        """Handle it, and then whatever that has made possible; keep what comes too early."""
        if not self.alive or self.left:
            return
        if not self.handled(event, value):
            self.stash.append((event, value))
            return
        moved = bool(self.stash)
        while moved:
            moved = False
            for _ in range(len(self.stash)):
                event, value = self.stash.popleft()
                if self.handled(event, value):
                    moved = True
                else:
                    self.stash.append((event, value))

    def handled(self, event: moves.Event, value: Value) -> bool:
        verdict = self.verdict(event)
        if verdict is Verdict.LATER:
            return False
        if isinstance(event, moves.Arrived) and verdict is Verdict.ACCEPT:
            self.place(event, value)
        self.perform(self.part.handle(event))
        return True

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
                case moves.Join(view):
                    self.views[view.number] = view
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
            if rank == part.rank:
                values += (self.own(view, segment, slice_),)
            else:
                values += inbox.get((segment, slice_, rank), (("nothing",),))
        if slice_ == part.rank:
            self.land(segment, slice_, tuple(sorted(values)))
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
                tuple(sorted((c.incarnation, base, s, r, c.weight, "") for c in counted)) for r in range(size)
            )
            for s in segments
        )
        if action.weight and content != right:
            raise Violation(f"I2: {self.incarnation} combined {content}")
        members = tuple(m.incarnation for m in self.views[action.version.view].members)
        made = Commit(action.version, members, self.state, action.contributions, content)
        self.world.adopted(self, made)
        self.state, self.chain = made.state, (*self.chain, made)
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
            if self.link is not None:
                self.link.close()
            self.born()
            self.connect()
            return
        self.donate()
        holding = self.holding
        if self.told and not self.waiting and not (self.part.phase == "member" and holding.taken):
            self.leave(Left(False, "it was told to end", told=True))
            return
        if self.waiting or self.part.phase != "member":
            return
        if (self.plan.shares_buffer or holding.done) and not self.part.settled:
            return
        if holding.done and self.reported < self.part.version.number:
            return
        if holding.done and self.unacknowledged and self.patience > 0:
            self.patience -= 1
            return
        if self.told:
            self.propose()
            return
        if holding.done:
            self.say(Left(True, "done"))
            if self.link is not None:
                self.left = True
                self.link.close()
            return
        if holding.queued < 2 * self.plan.batch and self.world.clock.now - self.asked_at > 0.3:
            self.asked_at = self.world.clock.now
            self.say(Asked(0, holding.epoch, 2 * self.plan.batch))
        if self.late():
            self.abstain()
            return
        if holding.queue:
            batch = holding.take(self.plan.batch)
            if self.raises(batch):
                self.leave(Left(False, "a sample is bad", batch=batch))
                return
            self.steps += 1
            if self.steps < self.plan.every and not self.part.hurry:
                return
        elif self.answered and not holding.taken and not holding.to_skip:
            if self.part.hurry:
                self.propose()
            return
        if holding.taken or holding.to_skip or self.part.called:
            self.propose()

    def raises(self, batch: tuple[Span, ...]) -> bool:
        """Is there a sample in it at which scripts raise?"""
        data = self.world.dataset
        samples = {
            int(sample)
            for span in batch
            for sample in Shuffle(data.length, data.seed, span.epoch).indices(span.start, span.stop)
        }
        bad = not samples.isdisjoint(self.plan.bad)
        self.world.failed.update(samples if bad else ())
        return bad

    def leave(self, goodbye: Left) -> None:
        """The process ends, and is started anew."""
        self.world.note(f"END {self.incarnation}", goodbye)
        self.say(goodbye)
        self.world.ends(self, 0.2 + self.random.random() * 0.5)

    def late(self) -> bool:
        """The others wait, and the script of this one is in a step that takes longer than the deadline."""
        part = self.part
        return part.called and part.settled and self.random.random() < self.plan.abstains

    def abstain(self) -> None:
        """As `worker.lateness` does: what was read stays taken."""
        self.weight, self.waiting = 0.0, True
        self.tell(moves.Propose(Contribution(self.incarnation, 0.0)))

    def snapshot(self, view: int) -> Snapshot:
        return Snapshot(view, self.part.version, self.state, self.chain, self.holding.save(), self.flipped)

    def keep(self) -> None:
        """Keep the state where the hub wants it: a copy now, and some time to write it."""
        order, self.order = self.order, None
        if order is None or self.part.phase != "member":
            return
        saved, url = self.snapshot(0), f"{order.url}/{order.line}/{order.serial}"

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
        contribution = Contribution(
            self.incarnation,
            self.weight,
            spans,
            rejected=rejected,
            leaving=self.told,
            skipped=tuple(self.holding.to_skip),
        )
        self.waiting = True
        version, me = self.part.version, self.incarnation
        if self.weight and self.plan.shares_buffer:
            self.vector, self.spoilt = {}, {}
        segments = list(range(self.plan.segments)) if self.weight else []
        self.random.shuffle(segments)

        def on() -> None:
            if self.part.version != version or self.incarnation != me or not self.waiting:
                return
            if segments:
                self.tell(moves.Ready(segments.pop(), self.weight))
                self.later(self.random.random() * 0.02, on)
            elif self.part.refilling:
                self.later(0.02, on)
            else:
                self.tell(moves.Propose(contribution))

        on()
