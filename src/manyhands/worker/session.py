"""One worker's place in the pool: the decisions of `core`, carried out over hub, exchange and driver.

Whoever brings news (the hub's reader, a peer's reader, the script's thread) takes the one lock, asks the
`Participant` what to do, and does it; combining slices happens outside the lock. Parameters are touched
on the script's thread alone.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass
from threading import Condition
from typing import Any

import numpy as np

from manyhands._version import __version__
from manyhands.core import rounds as core
from manyhands.core.holding import Holding, SavedHolding
from manyhands.core.messages import (
    Acknowledged,
    Applied,
    Asked,
    Beat,
    Contribution,
    Dataset,
    Declared,
    Evicted,
    Finished,
    Freeze,
    Hello,
    Leased,
    Left,
    Opened,
    Proposed,
    Ready,
    Refuse,
    SnapshotWanted,
    Span,
    Standing,
    Suspected,
    ToPeer,
    ToWorker,
    Version,
    View,
    Welcome,
    decode_for_peer,
    encode,
)
from manyhands.core.rounds import Participant, Verdict
from manyhands.errors import (
    ConfigurationError,
    DataError,
    ManyhandsError,
    ModelError,
    RunLost,
    RunOver,
    VersionMismatch,
    WireError,
)
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import DType, Header, Kind
from manyhands.sharing import tree
from manyhands.sharing.combine import Array, mean
from manyhands.worker.batches import Ended, Idle, cut
from manyhands.worker.control import Control
from manyhands.worker.driving import Driver, Outcome
from manyhands.worker.settings import Settings
from manyhands.worker.stopping import StopRule

log = logging.getLogger("manyhands.worker")

ERRORS: dict[str, type[ManyhandsError]] = {
    error.__name__: error for error in (ConfigurationError, DataError, ModelError, VersionMismatch)
}
REMIND_SECONDS = 30.0
ASK_AGAIN_SECONDS = 0.05
UNANSWERED_SECONDS = 1.0
OVERDUE_SECONDS = 1.0
SNAPSHOT_SECONDS = 20.0
LEAVE_SECONDS = 30.0


@dataclass
class Healing:
    """A state to be fetched: from which sources, and what has come."""

    view: View
    at: int
    sources: tuple[str, ...]
    packed: bytearray | None = None


class Session:
    """Implements `driving.Rounds`, `batches.Leases` and `roster.Sink` for a worker with a hub."""

    alone = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.changed = Condition()
        self.incarnation = ""
        self.holdings: dict[int, Holding] = {}
        self.rules: list[StopRule] = []
        self.driver: Driver | None = None
        self.strategy = ""
        self.position, self.expected = 0, 1
        self.read = 0
        self.metrics: dict[str, tuple[float, float]] = {}
        self.newest: dict[str, float] = {}
        self._error: ManyhandsError | None = None
        self._welcomed = self._closing = False
        self._participant: Participant | None = None
        self._run = settings.run
        self._connect()

    # --- connecting --------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Become a new incarnation, with connections of its own."""
        self.incarnation = f"{self.settings.name}-{uuid.uuid4().hex[:12]}"
        self._welcomed = False
        self._evicted = ""
        self._outcome: Outcome | None = None
        self._pending: tuple[float, tuple[Span, ...]] | None = None
        self._healing: Healing | None = None
        self._refill = False
        self._unacknowledged: dict[int, Applied] = {}
        self._answered: dict[int, bool] = {}
        self._asked_at: dict[int, float] = {}
        self._donations: list[tuple[str, int, int]] = []
        self._stash: deque[core.Event] = deque()
        self._landing: dict[int, Array] = {}
        self._starts: list[int] = []
        self._clean = 0
        self._busy: Counter[int] = Counter()
        self._moved = time.monotonic()
        self._frozen_view = 0
        self._exchange = Exchange(
            self._run, self.settings.token, self.incarnation, self, host=self.settings.host
        )
        self._control = Control(self.settings.hub, self.settings.token, self._hello, self._beat, self._heard)
        self._control.start(time.monotonic() + self.settings.connect_seconds)
        self._await(lambda: self._welcomed, "the hub's welcome", self.settings.connect_seconds)

    @property
    def participant(self) -> Participant | None:
        """This worker's part in the rounds, once it shares a model."""
        return self._participant

    def _hello(self) -> Hello:
        with self.changed:
            participant, ready = self._participant, None
            member = participant is not None and participant.view is not None
            if self.driver is not None and participant is not None:
                ready = Ready(self.driver.tensors, self.strategy)
            return Hello(
                run=self._run,
                incarnation=self.incarnation,
                name=self.settings.name,
                pid=os.getpid(),
                host=self._exchange.host,
                port=self._exchange.port,
                software=__version__,
                standing=self._standing(self._frozen_view) if member else None,
                datasets=tuple(holding.dataset for holding in self.holdings.values()),
                ready=ready,
            )

    def _beat(self) -> Beat:
        with self.changed:
            participant = self._participant
            waiting = participant is not None and participant.round.told
            stuck = participant is not None and (
                waiting or participant.phase == "rolling" or participant.opening is not None
            )
            overdue = stuck and time.monotonic() - self._moved > OVERDUE_SECONDS
            if overdue:
                self._moved = time.monotonic()
        if overdue:
            self._tell(core.Overdue())
        with self.changed:
            return Beat(
                self._exchange.sent_bytes,
                self._exchange.received_bytes,
                self.read,
                ", ".join(participant.missing()) if participant is not None and waiting else "",
            )

    def _standing(self, view: int) -> Standing:
        participant = self._participant
        assert participant is not None
        return Standing(
            view=view,
            version=participant.version,
            stops_at=participant.version.number if participant.stops_at is None else participant.stops_at,
            held=tuple(span for holding in self.holdings.values() for span in holding.held()),
            unacknowledged=tuple(self._unacknowledged.values()),
            member_of=participant.view,
            healed=participant.phase in ("member", "rolling"),
        )

    # --- what the hub says -------------------------------------------------------------------------

    def _heard(self, message: ToWorker) -> None:
        if isinstance(message, Freeze | Opened):
            self._tell(message)
            return
        if isinstance(message, Evicted):
            with self.changed:
                self._evicted = self._evicted or message.why
            self._tell(core.Out(message.why))
            return
        with self.changed:
            match message:
                case Welcome():
                    self._run, self.position, self.expected = message.run, message.place, message.expected
                    self._welcomed = True
                case Refuse(kind, why):
                    self._error = ERRORS.get(kind, ConfigurationError)(why)
                case Finished(why, ok):
                    self._error = self._error or (RunOver(why) if ok else RunLost(why))
                case Leased(dataset, epoch, spans):
                    self._answered[dataset] = bool(spans)
                    holding = self.holdings[dataset]
                    if holding.epoch == epoch:
                        holding.leased(spans)
                case Acknowledged(number):
                    self._unacknowledged = {n: a for n, a in self._unacknowledged.items() if n > number}
            self.changed.notify_all()

    # --- the one loop ------------------------------------------------------------------------------

    def _handled(self, event: core.Event) -> list[core.Action]:
        assert self._participant is not None
        actions = self._participant.handle(event)
        for _ in range(len(self._stash)):
            early = self._stash.popleft()
            if self._is_early(early):
                self._stash.append(early)
            else:
                actions += self._participant.handle(early)
        return actions

    def _is_early(self, event: core.Event) -> bool:
        assert self._participant is not None
        if isinstance(event, core.Arrived):
            return self._participant.verdict(event.view, event.base, event.kind) is Verdict.LATER
        assert isinstance(event, core.Heard)
        kind = "proposed" if isinstance(event.message, Proposed) else "message"
        base = event.message.base if isinstance(event.message, Proposed) else 0
        return self._participant.verdict(event.message.view, base, kind) is Verdict.LATER

    def _tell(self, event: core.Event) -> None:
        """Hand an event over, do what follows, and combine outside the lock."""
        with self.changed:
            if self._participant is None:
                return
            if isinstance(event, core.Arrived | core.Heard) and self._is_early(event):
                self._stash.append(event)
                return
            combines = self._perform(self._handled(event))
            self._moved = time.monotonic()
            self.changed.notify_all()
        while combines:
            combine = combines.pop(0)
            done = self._combine(combine)
            with self.changed:
                self._busy[combine.view] -= 1
                if done is not None and self._participant is not None:
                    combines += self._perform(self._handled(done))
                self.changed.notify_all()

    def _perform(self, actions: list[core.Action]) -> list[core.Combine]:
        """Carry out actions under the lock; what has to be combined is returned."""
        combines: list[core.Combine] = []
        for action in actions:
            match action:
                case core.Combine():
                    self._busy[action.view] += 1
                    combines.append(action)
                case core.SendContribution():
                    self._send_contribution(action)
                case core.SendCombined():
                    self._send_combined(action)
                case core.SendWhole(view, base, segment, to):
                    a, b = self._segments[segment]
                    self._send(
                        (to,),
                        Header(Kind.WHOLE, view, base, segment, dtype=self._dtype),
                        self._driver.combined[a:b].data,
                    )
                case core.Tell(to, message):
                    self._say(to, message)
                case core.Commit():
                    self._commit(action)
                case core.Stand(view):
                    self._frozen_view = view
                    assert self._participant is not None
                    self._exchange.fence(self._participant.fence)
                    self._control.send(self._standing(view))
                case core.Join(view):
                    self._join(view)
                case core.Heal(view, at, sources):
                    self._healing = Healing(view, at, sources)
                case core.Refill():
                    self._refill = True
                case core.Report(message):
                    self._control.send(message)
                case core.Replaced(why):
                    log.warning("worker %s starts over: %s", self.settings.name, why)
                    self._outcome = Outcome("replaced")
        return combines

    @property
    def _driver(self) -> Driver:
        assert self.driver is not None
        return self.driver

    @property
    def _segments(self) -> tuple[tuple[int, int], ...]:
        return self._driver.layout.segments

    @property
    def _dtype(self) -> DType:
        return DType.FLOAT32 if self._driver.layout.dtype == np.float32 else DType.FLOAT64

    def _say(self, to: tuple[str, ...], message: ToPeer) -> None:
        payload = encode(message)
        header = Header(Kind.MESSAGE, message.view, getattr(message, "base", 0))
        self._send(to, header, payload)

    def _send(self, to: tuple[str, ...], header: Header, payload: bytes | memoryview | bytearray) -> None:
        for peer in to:
            self._exchange.send(peer, header, payload)

    def _members(self) -> tuple[str, ...]:
        assert self._participant is not None
        view = self._participant.view
        return tuple(m.incarnation for m in view.members) if view else ()

    def _send_contribution(self, action: core.SendContribution) -> None:
        members = self._members()
        parts = self._driver.layout.slices(action.segment, len(members))
        for rank in action.ranks:
            a, b = parts[rank]
            header = Header(
                Kind.CONTRIBUTION,
                action.view,
                action.base,
                action.segment,
                rank,
                self._dtype,
                action.weight,
            )
            self._exchange.send(members[rank], header, self._driver.contribution[a:b].data)

    def _send_combined(self, action: core.SendCombined) -> None:
        members = self._members()
        assert self._participant is not None
        rank = self._participant.rank
        a, b = self._driver.layout.slices(action.segment, len(members))[rank]
        header = Header(
            Kind.COMBINED, action.view, action.base, action.segment, rank, self._dtype, subset=action.subset
        )
        to = tuple(members[r] for r in action.ranks)
        self._exchange.send_all(to, header, self._driver.combined[a:b].data)

    def _combine(self, action: core.Combine) -> core.Combined | None:
        self._cleaned(action.view)
        with self.changed:
            participant = self._participant
            if participant is None or participant.view is None or participant.view.number != action.view:
                return None
            rank, size, landing = participant.rank, participant.view.size, self._landing
        a, b = self._driver.layout.slices(action.segment, size)[rank]
        start = self._starts[action.segment]
        inputs = [
            self._driver.contribution[a:b] if r == rank else landing[r][start : start + b - a]
            for r in action.ranks
        ]
        mean(self._driver.combined[a:b], inputs, action.weights)
        return core.Combined(action.view, action.base, action.segment, action.ranks)

    def _cleaned(self, view: int) -> None:
        """Before a slice of a view is written: nobody writes one of an older view any more."""
        with self.changed:
            if self._clean >= view:
                return
            self.changed.wait_for(lambda: not any(n for v, n in self._busy.items() if v < view), 30.0)
        self._exchange.quiesce(time.monotonic() + 30.0)
        with self.changed:
            self._clean = max(self._clean, view)

    def _join(self, view: View) -> None:
        assert self._participant is not None
        self._exchange.fence(view.number)
        self._exchange.members({m.incarnation: (m.host, m.port) for m in view.members})
        starts, total = [], 0
        for segment in range(len(self._segments)):
            a, b = self._driver.layout.slices(segment, view.size)[self._participant.rank]
            starts.append(total)
            total += b - a
        self._starts = starts
        self._landing = {
            rank: np.empty(total, self._driver.layout.dtype)
            for rank in range(view.size)
            if rank != self._participant.rank
        }

    def _commit(self, action: core.Commit) -> None:
        if action.own and self._driver.combined is not self._driver.contribution:
            np.copyto(self._driver.combined, self._driver.contribution)
        for holding in self.holdings.values():
            holding.commit(action.contributions)
        sums: dict[str, tuple[float, float]] = {}
        for contribution in action.contributions:
            for name, (total, weight) in contribution.metrics.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + total, before[1] + weight)
        means = {name: total / weight for name, (total, weight) in sums.items() if weight > 0}
        self.newest |= means
        for rule in self.rules:
            rule.evaluate(action.version.number, means)
        self._unacknowledged[action.version.number] = Applied(action.version, "", action.contributions)
        self._pending, self._refill = None, False
        counted = [c for c in action.contributions if c.weight > 0]
        self._outcome = Outcome("committed", action.weight, tuple(c.present for c in counted))

    # --- what peers say (roster.Sink) --------------------------------------------------------------

    def place(self, peer: str, header: Header) -> memoryview | None:
        """Where a peer's payload goes; waits while it belongs to a view this worker has yet to hear of."""
        if header.kind is Kind.MESSAGE:
            return memoryview(bytearray(header.length))
        with self.changed:
            if header.kind is Kind.SNAPSHOT:
                healing = self._healing
                if healing is None or healing.view.number != header.view or peer not in healing.sources:
                    return None
                return memoryview(bytearray(header.length))
            self.changed.wait_for(lambda: self._placeable(header), self._exchange.deadlines.stall)
            where = self._where(peer, header)
        if where is None or header.dtype is not self._dtype:
            return None
        if where.nbytes != header.length:
            raise WireError(f"length: {header.length} bytes, expected {where.nbytes} for this slice")
        if header.kind is not Kind.CONTRIBUTION:
            self._cleaned(header.view)
        return where.data.cast("B") if where.nbytes else memoryview(bytearray(0))

    def _placeable(self, header: Header) -> bool:
        participant = self._participant
        if self._closing or participant is None or self._evicted:
            return True
        if participant.frozen:
            return header.view < participant.fence
        current = participant.view.number if participant.view else 0
        if header.view != current:
            return header.view < current
        if header.kind is Kind.CONTRIBUTION:
            return True
        return participant.verdict(header.view, header.base, header.kind.name.lower()) is not Verdict.LATER

    def _where(self, peer: str, header: Header) -> Array | None:
        participant = self._participant
        if participant is None or participant.view is None or participant.frozen:
            return None
        rank = participant.view.rank(peer)
        if header.view != participant.view.number or rank is None or header.segment >= len(self._segments):
            return None
        a, b = self._segments[header.segment]
        parts = self._driver.layout.slices(header.segment, participant.view.size)
        if header.kind is Kind.CONTRIBUTION:
            if header.base < participant.version.number and participant.phase == "member":
                return None
            start = self._starts[header.segment]
            a, b = parts[participant.rank]
            return self._landing[rank][start : start + b - a]
        if participant.verdict(header.view, header.base, header.kind.name.lower()) is not Verdict.ACCEPT:
            return None
        if header.kind is Kind.COMBINED:
            a, b = parts[rank]
        return self._driver.combined[a:b]

    def arrived(self, peer: str, header: Header, payload: memoryview | None) -> None:
        """A payload is complete."""
        if payload is None:
            return
        if header.kind is Kind.MESSAGE:
            message = decode_for_peer(payload)
            if isinstance(message, SnapshotWanted):
                with self.changed:
                    self._donations.append((peer, message.view, message.at))
                    self.changed.notify_all()
            else:
                self._tell(core.Heard(peer, message))
            return
        if header.kind is Kind.SNAPSHOT:
            with self.changed:
                if self._healing is not None and self._healing.view.number == header.view:
                    self._healing.packed = bytearray(payload)
                    self.changed.notify_all()
            return
        kinds: dict[Kind, Any] = {
            Kind.CONTRIBUTION: "contribution",
            Kind.COMBINED: "combined",
            Kind.WHOLE: "whole",
        }
        self._tell(
            core.Arrived(
                kinds[header.kind],
                peer,
                header.view,
                header.base,
                header.segment,
                header.weight,
                header.subset,
            )
        )

    def lost(self, peer: str, why: str) -> None:
        """A connection broke: the hub decides what it means."""
        self._control.send(Suspected(peer, why))

    # --- rounds, on the script's thread (driving.Rounds) -------------------------------------------

    @property
    def size(self) -> int:
        """Members of the view, or the workers expected before the first one."""
        view = self._participant.view if self._participant else None
        return view.size if view else self.expected

    @property
    def hurry(self) -> bool:
        """Everyone else waits for this worker."""
        with self.changed:
            self._donate()
            return self._participant is not None and self._participant.hurry

    def _weigh(self) -> tuple[float, tuple[Span, ...]]:
        """What this round's contribution counts, fixed at its first segment."""
        if self._pending is None:
            spans = tuple(span for holding in self.holdings.values() for span in holding.propose())
            weight = float(sum(len(span) for span in spans)) if self.holdings else 1.0
            self._pending = weight, spans
        return self._pending

    def ready(self, segment: int) -> None:
        """A segment of the contribution is final."""
        with self.changed:
            weight, _ = self._weigh()
        if weight > 0 and not self._evicted:
            self._tell(core.Ready(segment, weight))

    def finish(self, present: bytes, rejected: str = "") -> Outcome:
        """Propose, and wait for the version."""
        with self.changed:
            weight, spans = self._weigh()
            if self._evicted:
                return Outcome("replaced")
            if rejected:
                log.warning("worker %s: this contribution does not count: %s", self.settings.name, rejected)
                weight, spans = 0.0, ()
                for holding in self.holdings.values():
                    holding.withdraw()
            contribution = Contribution(
                self.incarnation, weight, spans, self.metrics, rejected, present if weight else b""
            )
            self.metrics, self._outcome = {}, None
        self._tell(core.Propose(contribution))
        outcome = self._wait_for_outcome()
        if outcome.kind == "committed" and not outcome.total_weight:
            self._driver.combined[:] = 0
        return outcome

    def _wait_for_outcome(self) -> Outcome:
        began = time.monotonic()
        remind = began + REMIND_SECONDS * self.settings.patience
        while True:
            with self.changed:
                self.changed.wait_for(
                    lambda: self._outcome is not None or self._refill or self._donations or self._error, 0.5
                )
                self._donate()
                if self._outcome is not None:
                    outcome, self._outcome = self._outcome, None
                    return outcome
                if self._error is not None:
                    raise self._error
                refill = self._refill
                self._refill = False
                view = self._participant.view if self._participant else None
                if time.monotonic() > remind:
                    remind += REMIND_SECONDS * self.settings.patience
                    missing = self._participant.missing() if self._participant else ()
                    log.warning(
                        "worker %s has waited %.0f s for %s; the hub drops a worker whose lease is over",
                        self.settings.name,
                        time.monotonic() - began,
                        ", ".join(missing) or "the hub",
                    )
            if refill and view is not None:
                self._cleaned(view.number)
                self._driver.refill()
                for segment in range(len(self._segments)):
                    self.ready(segment)

    def adopted(self) -> None:
        """The outcome is applied: say so."""
        digest = self._driver.digest()
        with self.changed:
            participant = self._participant
            if participant is None or participant.view is None:
                return
            number = participant.version.number
            applied = self._unacknowledged.get(number)
            if applied is not None:
                self._unacknowledged[number] = Applied(applied.version, digest, applied.contributions)
            first = applied is not None and participant.rank == 0
            contributions = applied.contributions if first and applied else None
            self._control.send(Applied(participant.version, digest, contributions))

    def settled(self) -> None:
        """Wait until every member holds the last version."""

        def settled() -> bool:
            participant = self._participant
            return (
                participant is None or bool(self._evicted) or self._outcome is not None or participant.settled
            )

        self._await(settled, "every member to hold the last version", None)

    def heal(self) -> None:
        """Fetch the state of the pool from a member, as a new incarnation if this one was evicted."""
        if self._evicted:
            log.warning("worker %s joins again: %s", self.settings.name, self._evicted)
            with self.changed:
                self._participant = None
            self._disconnect()
            for holding in self.holdings.values():
                holding.forget()
            self._connect()
            self._participant = self._participate()
            self._control.send(Ready(self._driver.tensors, self.strategy))
        self._enter(after_step=True)

    def _participate(self) -> Participant:
        shares = not self._driver.needs_user_step
        return Participant(self.incarnation, len(self._segments), shares_buffer=shares)

    def share(self, driver: Driver, strategy: str) -> None:
        """Become a member, with the state of the pool."""
        with self.changed:
            self.driver, self.strategy = driver, strategy
            self._participant = self._participate()
        driver.attach(self)
        self._control.send(Ready(driver.tensors, strategy))
        self._enter(after_step=False)

    def _enter(self, *, after_step: bool) -> None:
        """Wait for a view, and for the state if this worker is not its source."""
        while True:
            self._await(
                lambda: (
                    self._healing is not None
                    or bool(self._evicted)
                    or (self._participant is not None and self._participant.phase == "member")
                ),
                "a place in the pool",
                None,
            )
            with self.changed:
                if self._evicted:
                    raise ConfigurationError(f"the hub evicted this worker while it joined: {self._evicted}")
                healing = self._healing
            if healing is None or self._fetch(healing, after_step=after_step):
                return

    def _fetch(self, healing: Healing, *, after_step: bool) -> bool:
        """Ask one source after the other; False when the view changed meanwhile."""
        for source in healing.sources * 3:
            wanted = SnapshotWanted(healing.view.number, healing.at)
            with self.changed:
                self._say((source,), wanted)
                self.changed.wait_for(
                    lambda: (
                        healing.packed is not None
                        or self._healing is not healing
                        or self._evicted
                        or self._error
                    ),
                    SNAPSHOT_SECONDS * self.settings.patience,
                )
                if self._error is not None:
                    raise self._error
                if self._healing is not healing or self._evicted:
                    return False
                packed = healing.packed
            if packed is None:
                log.warning("worker %s got no state from %s; asking again", self.settings.name, source)
                continue
            state: Any = tree.unpack(packed)
            self._driver.install(state["driver"], after_step)
            with self.changed:
                for holding in self.holdings.values():
                    holding.reclaim()
                for dataset, epoch, committed in state["holdings"]:
                    if dataset in self.holdings:
                        pairs = tuple((a, b) for a, b in committed)
                        self.holdings[dataset].load(SavedHolding(dataset, epoch, pairs))
                for rule, (best, since, reason) in zip(self.rules, state["rules"], strict=False):
                    rule.best, rule.since, rule.reason = best, since, reason
                self._healing, self._outcome, self._pending = None, None, None
            self._tell(core.Installed(Version(*state["version"])))
            return True
        raise RunLost("no member gave this worker the state of the pool; see the log of the hub")

    def _donate(self) -> None:
        """Give the current state to whoever asked for it; on the script's thread, under the lock."""
        participant = self._participant
        if participant is None or participant.phase != "member" or participant.view is None:
            return
        if self._outcome is not None:
            return
        for donation in list(self._donations):
            peer, view, at = donation
            if view > participant.view.number or at > participant.version.number:
                continue
            self._donations.remove(donation)
            if view != participant.view.number or at != participant.version.number:
                continue
            packed = tree.pack(
                {
                    "version": [participant.version.number, participant.version.view],
                    "driver": self._driver.capture(),
                    "holdings": [
                        [h.dataset.index, h.epoch, [list(p) for p in h.committed]]
                        for h in self.holdings.values()
                    ],
                    "rules": [[r.best, r.since, r.reason] for r in self.rules],
                }
            )
            self._send((peer,), Header(Kind.SNAPSHOT, view, at), packed)

    # --- data (batches.Leases) ---------------------------------------------------------------------

    def declare(self, dataset: Dataset) -> None:
        """The script partitions a data set."""
        with self.changed:
            self.holdings[dataset.index] = Holding(dataset)
            self._control.send(Declared(dataset))

    def take(self, dataset: int, samples: int) -> tuple[Span, ...] | Idle | Ended:
        """The spans of the next batch; takes part in rounds while there is none."""
        holding = self.holdings[dataset]
        while True:
            with self.changed:
                if not self._driver.needs_user_step:
                    self._donate()
                reason = next((rule.reason for rule in self.rules if rule.reason), "")
                if reason or holding.done:
                    return Ended(reason)
                self._ask(holding, samples)
                if not holding.queue:
                    self.changed.wait_for(
                        lambda: (
                            holding.queue
                            or self._answered.get(dataset) is False
                            or self._evicted
                            or self._error
                            or self._refill
                            or self._donations
                        ),
                        1.0,
                    )
                if self._error is not None:
                    raise self._error
                if holding.queue:
                    batch, _ = cut(holding.peek(samples), samples)
                    wanted = sum(len(span) for span in batch)
                    self.read += wanted
                    return holding.take(wanted)
                if self._answered.get(dataset) is not False and not self._evicted and self._control.connected:
                    continue
            if self._driver.needs_user_step:
                return Idle(repeat=True)
            self._driver.idle()

    def _ask(self, holding: Holding, samples: int) -> None:
        """Lease ahead: some ten seconds of data, so that the hub may be away for a while."""
        index, now = holding.dataset.index, time.monotonic()
        if holding.queued >= 4 * samples:
            return
        answered = self._answered.get(index) if index in self._asked_at else True
        pause = {True: 0.0, False: ASK_AGAIN_SECONDS, None: UNANSWERED_SECONDS}[answered]
        if now - self._asked_at.get(index, 0.0) < pause:
            return
        self._asked_at[index] = now
        self._answered.pop(index, None)
        self._control.send(Asked(index, holding.epoch, 32 * samples))

    def peek(self, dataset: int, samples: int) -> tuple[Span, ...]:
        """What `take` would give next."""
        with self.changed:
            return self.holdings[dataset].peek(samples)

    def committed(self, dataset: int) -> int:
        """Samples the pool has committed over all epochs."""
        with self.changed:
            return self.holdings[dataset].total_committed

    # --- leaving -----------------------------------------------------------------------------------

    def leave(self, *, finished: bool, why: str) -> None:
        """Say goodbye and close everything; who has finished first sees that all hold the last version."""
        deadline = time.monotonic() + LEAVE_SECONDS * self.settings.patience
        while finished and time.monotonic() < deadline:
            with self.changed:
                self._donate()
                part = self._participant
                if part is None or part.view is None or part.settled or self._evicted or self._error:
                    break
                self.changed.wait(0.1)
        with self.changed:
            for applied in self._unacknowledged.values() if finished else ():
                self._control.send(applied)
        self._control.send(Left(finished, why))
        self._disconnect()

    def _disconnect(self) -> None:
        with self.changed:
            self._closing = True
            self.changed.notify_all()
        self._exchange.drain(time.monotonic() + 2.0)
        self._control.close()
        self._exchange.close()
        with self.changed:
            self._closing = False

    def _await(self, condition: Any, what: str, seconds: float | None) -> None:
        """Wait on the script's thread; without a limit, say every while what is waited for."""
        began = time.monotonic()
        while True:
            with self.changed:
                if self.changed.wait_for(
                    lambda: condition() or self._error is not None or bool(self._donations), 1.0
                ):
                    self._donate()
                    if self._error is not None:
                        raise self._error
                    if condition():
                        return
            waited = time.monotonic() - began
            if seconds is not None and waited > seconds:
                raise ConfigurationError(f"{what} did not come in {seconds:.0f} s from {self.settings.hub}")
            if int(waited) and int(waited) % int(REMIND_SECONDS) == 0:
                log.warning("worker %s has waited %.0f s for %s", self.settings.name, waited, what)
