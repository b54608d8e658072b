"""The real decisions of hubs and workers, under faults drawn from one seed, in virtual time.

`simulate(seed)` runs a whole training with symbolic values instead of tensors and checks the
invariants after every event. It raises `Violation`, with the seed and the last events, where one breaks.
`python -m manyhands.testing.simulation SEED` says how the run of a seed ends, or what broke in it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from random import Random

from manyhands.core import moves
from manyhands.core.checkpoints import Plan as KeepingPlan
from manyhands.core.coordinator import ENDED, EPOCH_BITS, Coordinator
from manyhands.core.decisions import Connected, Event, Received
from manyhands.core.ledger import settled
from manyhands.core.membership import GONE
from manyhands.core.messages import START, Applied, Dataset, Version
from manyhands.testing.faults import draw
from manyhands.testing.network import Clock, Cuts, Datagrams
from manyhands.testing.plan import Plan, Result, Violation
from manyhands.testing.simulated_hub import LEASE, SimulatedHub
from manyhands.testing.simulated_worker import Commit, Snapshot, Value, Worker

GATHER = 3.0
ONE_POOL = 3 * LEASE + 1.0
"""Seconds without a cut after which two hubs do not both serve workers any more."""


class Simulation:
    """Hubs, workers, the network between them, and the faults of one seed."""

    LIMIT = 120.0
    EVENTS = 40_000

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.seed, self.random = seed, Random(seed)
        self.plan = plan or Plan.draw(self.random)
        self.clock = Clock()
        self.cuts = Cuts(self.clock)
        self.dataset = Dataset(0, self.plan.length, self.plan.batch, self.plan.epochs, self.plan.order, 0)
        self.log: deque[tuple[float, tuple[object, ...]]] = deque(maxlen=60)
        self.names, self.count = 0, 0
        self.places: tuple[str, ...] = ("hub a", "hub b", "hub c")
        self.hubs: dict[str, SimulatedHub] = {}
        self.peers: dict[tuple[str, str], Datagrams] = {}
        self.of: dict[str, Worker] = {}
        self.history: dict[tuple[Version, tuple[str, ...]], Commit] = {}
        self.kept: dict[str, Snapshot] = {}
        self.failed: set[int] = set()
        self.ended: SimulatedHub | None = None
        self.alone_since, self.without_hub, self.coming = 0.0, 0, 0
        self.open_hub("hub a", Coordinator("sim", self.plan.workers, LEASE, gather=GATHER))
        self.workers = [Worker(self, str(i)) for i in range(self.plan.workers)]
        for _ in range(self.plan.faults):
            self.clock.at(0.3 + self.random.random() * self.plan.seconds, lambda: draw(self.random)(self))
        self.later(0.1, self.tick)

    @property
    def newest(self) -> SimulatedHub:
        """The hub that has the say, or had it last."""
        known = (h for h in self.hubs.values() if h.coordinator.view is not None or h.ended)
        first = next(iter(self.hubs.values()))
        return max(known, key=lambda h: (h.up, h.coordinator.epoch), default=first)

    @property
    def hub(self) -> Coordinator:
        """The newest hub's decisions."""
        return self.newest.coordinator

    def later(self, seconds: float, what: Callable[[], object]) -> None:
        self.clock.after(seconds, what)

    # --- between workers ---------------------------------------------------------------------------

    def name(self, worker: Worker) -> str:
        self.names += 1
        incarnation = f"{worker.name}#{self.names}"
        self.of[incarnation] = worker
        return incarnation

    def living(self, incarnation: str) -> Worker | None:
        worker = self.of.get(incarnation)
        good = worker is not None and worker.alive and not worker.left and worker.incarnation == incarnation
        return worker if good else None

    def to_peer(self, sender: Worker, to: str, event: moves.Event, value: Value) -> None:
        def deliver(worker: Worker) -> None:
            self.note(to, "<-", event, value)
            worker.tell(event, value)

        self._send(sender, to, deliver)

    def ask(self, worker: Worker, source: str, view: int, at: int) -> None:
        me = worker.incarnation
        self._send(worker, source, lambda donor: donor.wanted.append((me, view, at)))

    def give(self, donor: Worker, to: str, saved: Snapshot) -> None:
        self._send(donor, to, lambda worker: worker.install(saved))

    def _send(self, sender: Worker, to: str, what: Callable[[Worker], None]) -> None:
        line = self.peers.get((sender.incarnation, to))
        if line is None:
            plan = self.plan
            line = Datagrams(self.clock, self.random, plan.loss, plan.twice, plan.late)
            self.peers[sender.incarnation, to] = line

        def deliver() -> None:
            worker = self.living(to)
            if worker is not None and self.cuts.open(sender.name, worker.name):
                what(worker)

        line.send(deliver)

    def unreachable(self, worker: Worker) -> tuple[str, ...]:
        """The members to whom nothing of this one gets through just now."""
        members = worker.part.view.members if worker.part.view else ()
        return tuple(m.incarnation for m in members if not self.cuts.open(worker.name, m.name))

    def note(self, *what: object) -> None:
        """Remember for the story; it is only written down when something breaks."""
        self.log.append((self.clock.now, what))

    # --- processes come and go ---------------------------------------------------------------------

    def kill(self, worker: Worker, back: float | None) -> None:
        """`kill -9` of a worker; a fresh process of that name comes after `back` seconds."""
        if not worker.alive or worker.left:
            return
        self.note(f"KILL {worker.incarnation} at {worker.part.version}")
        self.ends(worker, back)

    def ends(self, worker: Worker, back: float | None) -> None:
        """A process is over before the run is."""
        worker.alive = False
        if worker.link is not None:
            worker.link.close()
        if back is not None:
            self.later(back, lambda: self.start(worker.name))

    def start(self, name: str) -> None:
        self.note(f"START {name}")
        self.workers = [w for w in self.workers if w.name != name]
        self.workers.append(Worker(self, name))

    def open_hub(self, place: str, coordinator: Coordinator) -> None:
        keeping = KeepingPlan("kept", versions=self.plan.keeps) if self.plan.keeps else None
        self.hubs[place] = SimulatedHub(self, place, coordinator, keeping, self.plan.remembers)

    def take_over(self) -> SimulatedHub | None:
        """A hub that knows nothing begins where none is, to take over; None where there is no place."""
        place = next((p for p in self.places if p not in self.hubs or not self.hubs[p].up), None)
        if place is None:
            return None
        self.note(f"START {place} to take over")
        hub = Coordinator("sim", self.plan.workers, LEASE, gather=GATHER)
        hub.take_over(self.random.getrandbits(EPOCH_BITS))
        self.open_hub(place, hub)
        return self.hubs[place]

    def kill_hub(self, back: float, *, keeps_journal: bool = True) -> None:
        """The newest hub dies, and comes back with its journal, or another one takes over."""
        hub = self.newest
        hub.kill()
        self.bring(back, hub.revive if keeps_journal else self.take_over)

    def bring(self, seconds: float, start: Callable[[], object]) -> None:
        """A hub comes so much later: until then no run is over."""

        def come() -> None:
            self.coming -= 1
            start()

        self.coming += 1
        self.later(seconds, come)

    def sleep(self, hub: SimulatedHub, seconds: float) -> None:
        """A hub is stopped and woken: what is said meanwhile is heard then."""
        hub.sleep(seconds)
        for worker in {worker.name for worker in self.workers}:
            self.cuts.cut(worker, hub.place, seconds)
            self.cuts.cut(hub.place, worker, seconds)

    def tick(self) -> None:
        for hub in list(self.hubs.values()):
            hub.tick()
        self._check_one_pool()
        if any(hub.up for hub in self.hubs.values()):
            self.without_hub = 0
        else:
            self.without_hub += 1
        if self.without_hub == 30:  # the last one may have made way for one that is dead: somebody sees to it
            self.take_over()
        up, newest = [hub for hub in self.hubs.values() if hub.up], self.newest
        all_left = all(worker.left for worker in self.workers)
        all_ended = not self.coming and all(hub.ended for hub in up)  # else workers may yet go on with one
        if newest.ended in ("finished", "lost", "stopped") and (all_left or all_ended):
            self.ended = newest
        if all_left and all(hub.coordinator.view is None and not hub.ended for hub in up):
            self.ended = newest  # before this hub came, so it has heard of nobody
        self.later(0.1, self.tick)

    # --- the invariants ----------------------------------------------------------------------------

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise Violation(what)

    def adopted(self, worker: Worker, made: Commit) -> None:
        self.note("COMMIT", worker.incarnation, made.version, made.contributions)
        known = self.history.setdefault((made.version, made.members), made)
        if known != made:
            raise Violation(f"I1: {worker.incarnation} made {made}, others {known}")

    def decided(self, hub: SimulatedHub, event: Event, before: Version) -> None:
        """A hub has handled an event, and is about to act."""
        after = hub.coordinator.version
        going_on = hub.ended not in ("", "superseded") and hub.coordinator.state not in ENDED
        self.check(not going_on, f"{hub.place}: a run that had {hub.ended} goes on: {hub.coordinator.why}")
        if after.number < before.number:
            holders = [
                w.incarnation
                for w in self.workers
                if w.alive
                and any(made.version == before for made in w.chain)
                and (s := hub.coordinator.workers.get(w.incarnation)) is not None
                and s.state == "member"
            ]
            self.check(not holders, f"I4: from {before} to {after}, and {holders} hold it")
        match event:
            case Connected(hello):
                me, view = hello.incarnation, hub.coordinator.view
                known = hub.coordinator.workers.get(me)
                member = known is not None and known.state in ("member", "healing")
                inside = view is not None and view.rank(me) is not None
                self.check(inside or not member, f"I1: {me} is a member of no view of {hub.place}")
            case Received(who, Applied(version, digest)):
                known = hub.coordinator.workers.get(who)
                if known is not None and known.state not in GONE:
                    hub.reports[who] = version, digest
                    self._check_digests(hub)

    def _check_digests(self, hub: SimulatedHub) -> None:
        """Once all members have reported one version, those who stay reported one digest."""
        view, workers = hub.coordinator.view, hub.coordinator.workers
        reports = (
            {m.incarnation: hub.reports.get(m.incarnation, (START, "")) for m in view.members} if view else {}
        )
        staying = {r for who, r in reports.items() if workers[who].state == "member"}
        whole = len({version for version, _ in reports.values()}) == 1
        self.check(not whole or len(staying) <= 1, f"I2: {reports}, and all stay")

    def _check_one_pool(self) -> None:
        """Two hubs do not both decide over workers for long where nothing is cut."""
        serving = [h.place for h in self.hubs.values() if h.serves and h.links]
        if len(serving) < 2 or self.clock.now < self.cuts.last:
            self.alone_since = self.clock.now
        self.check(self.clock.now - self.alone_since < ONE_POOL, f"I1: two pools, of {serving}")

    def run(self) -> Result:
        """Until the run ends; raises `Violation` with the story."""
        try:
            while self.ended is None:
                self.clock.step()
                self.count += 1
                if self.clock.now > self.LIMIT or self.count > self.EVENTS:
                    raise Violation(f"I5: no end; hub {self.hub.state}, {self.hub.why}, {self.hub.version}")
            self._check_end(self.ended)
        except Exception as error:
            story = "\n  ".join(f"{at:.3f} {' '.join(map(str, what))}" for at, what in self.log)
            raise Violation(f"seed {self.seed}, {self.plan}: {error!r}\n  {story}") from error
        hub = self.ended.coordinator
        view = hub.view.number if hub.view else 0
        kind = self.ended.ended if self.ended.ended in ("lost", "stopped") else "finished"
        return Result(kind, hub.version, self.clock.now, self.count, view)

    def _check_end(self, hub: SimulatedHub) -> None:
        ledger = hub.coordinator.ledger
        quarantined = {i for found in ledger.quarantine for pair in found.samples for i in range(*pair)}
        self.check(quarantined <= self.failed, f"{quarantined} are quarantined, and {self.failed} failed")
        if hub.ended in ("lost", "stopped"):
            holders = [
                w.incarnation
                for w in self.workers
                if self.living(w.incarnation)
                and w.part.version == hub.coordinator.version != START
                and not w.evicted
                and not w.flipped
                and self.cuts.free(w.name, hub.place, 2 * LEASE)
            ]
            self.check(not holders, f"I4: {hub.coordinator.why}; but {holders} hold it")
            return
        for worker in self.workers:
            if worker.holding.done:
                self._check_read(worker)
            if worker.holding.done and worker.chain and self._is_last(worker.chain[-1], hub):
                others = hub.recorded.keys() - {made.version for made in worker.chain}
                self.check(not others, f"I3: the journal has {others}, {worker.incarnation} does not")
        if hub.ended == "finished" and hub.coordinator.workers:
            progress, total = hub.coordinator.ledger.progress(0), self.plan.length * self.plan.epochs
            counted = progress.twice == 0 and progress.total_committed == total
            self.check(counted, f"I3: the ledger says {progress}")

    @staticmethod
    def _is_last(made: Commit, hub: SimulatedHub) -> bool:
        """The run ended with this one; what ends in two pools may have one name and not be one version."""
        recorded = hub.recorded.get(made.version, made.members)
        return made.version == hub.coordinator.version and made.members == recorded

    def _check_read(self, worker: Worker) -> None:
        """Each sample of each epoch has been learned from once, or left out once where scripts raise."""
        read = sorted(
            (span.epoch, position)
            for made in worker.chain
            for contribution in made.contributions
            for span in settled(contribution)
            for position in range(span.start, span.stop)
        )
        wanted = [(e, i) for e in range(self.plan.epochs) for i in range(self.plan.length)]
        self.check(read == wanted, f"I3: {worker.incarnation} has {read}")


def simulate(seed: int, plan: Plan | None = None) -> Result:
    """One run under the faults of this seed; raises `Violation` where an invariant breaks."""
    return Simulation(seed, plan).run()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(simulate(int(argument)))
