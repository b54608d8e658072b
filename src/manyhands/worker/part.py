"""The part of one incarnation in the rounds: what its participant decides, carried out."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np

from manyhands.core import moves
from manyhands.core.messages import (
    Applied,
    Contribution,
    Healing,
    Offered,
    PartsWanted,
    Proposed,
    SnapshotWanted,
    Standing,
    ToHub,
    ToPeer,
    Want,
    decode_for_peer,
    encode,
)
from manyhands.core.rounds import Participant, Verdict
from manyhands.errors import ProtocolError, WireError
from manyhands.exchange.memory import Loan, Memory
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import Header, Kind
from manyhands.sharing.strategy import PLAIN, Strategy
from manyhands.worker import testimony
from manyhands.worker.coded_slices import CodedSlices
from manyhands.worker.driving import Driver, Outcome
from manyhands.worker.healing import Donor, Patient
from manyhands.worker.lateness import Lateness
from manyhands.worker.progress import Progress
from manyhands.worker.saving import Saver
from manyhands.worker.slices import KINDS, Slices, Work
from manyhands.worker.unacknowledged import Unacknowledged
from manyhands.worker.waiting import Waiting

log = logging.getLogger("manyhands.worker")

OVERDUE_SECONDS = 1.0
ROUNDS_REMEMBERED = 8
OF_SLICES = moves.Combine, moves.SendContribution, moves.SendGathered, moves.SendCombined


class Part:
    """Hands events to the participant of one incarnation, and does what it answers.

    Whoever brings news (the hub's reader, a peer's reader, the script's thread) calls `tell`, which does
    all under the lock but to encode and combine slices. `outcome` and `refill` wait for the script's
    thread, the only one on which the driver reads or writes parameters.
    """

    def __init__(
        self,
        incarnation: str,
        driver: Driver,
        progress: Progress,
        exchange: Exchange,
        memory: Memory | None,
        strategy: Strategy,
        run: str,
        waiting: Waiting,
        report: Callable[[ToHub], None],
    ) -> None:
        self.participant = Participant(
            incarnation, len(driver.layout.segments), shares_buffer=driver.shares_buffer
        )
        self.outcome: Outcome | None = None
        self.refill = False
        self._driver, self._progress, self._exchange = driver, progress, exchange
        self._waiting, self._report = waiting, report
        self._slices = (
            CodedSlices(driver, self.participant, exchange, memory, waiting.changed, strategy.encode)
            if strategy.encode != PLAIN
            else Slices(driver, self.participant, exchange, memory, waiting.changed)
        )
        self._donor = Donor(driver, progress, self.participant, exchange, waiting)
        self.saver = Saver(
            run, repr(strategy), driver, progress, self.participant, waiting, report, self._slices
        )
        self._patient = Patient(driver, progress, self.participant, exchange, waiting, report, self._slices)
        self.lateness = Lateness(
            strategy.close, self.participant, waiting, lambda: self.outcome is None, self._abstain
        )
        self._early: deque[moves.Arrived | moves.Heard] = deque()
        self._unacknowledged = Unacknowledged()
        self._made_of: tuple[Contribution, ...] = ()
        self._answered = 0
        self._moved, self._received = time.monotonic(), 0
        self._all_proposed: float | None = None
        self._took: deque[float] = deque(maxlen=ROUNDS_REMEMBERED)

    # --- the one loop ------------------------------------------------------------------------------

    def tell(self, event: moves.Event) -> None:
        """Hand an event over, do what follows, and the work on slices outside the lock."""
        with self._waiting.changed:
            if isinstance(event, moves.Arrived | moves.Heard) and self._is_early(event):
                self._early.append(event)
                return
            work = self._handle(event)
            if not _asks(event):
                self._moved = time.monotonic()
        self._do(work)

    def _handle(self, event: moves.Event) -> list[Work]:
        """Under the lock: the event, and what came before its time and now is due."""
        try:
            actions = self.participant.handle(event)
            while due := next((early for early in self._early if not self._is_early(early)), None):
                self._early.remove(due)
                actions += self.participant.handle(due)
        except ProtocolError as error:
            self._waiting.fail(error)  # whoever told this one: the script must not wait for ever
            raise
        work = self._perform(actions)
        self._measure()
        self.lateness.look()
        if self._is_news(actions):
            self._waiting.changed.notify_all()
        return work

    def _is_news(self, actions: list[moves.Action]) -> bool:
        """Whether anybody may wait for it: who has proposed waits for the end of the round, not for slices.

        To wake the script's thread for each of them costs more than all else that is done about one.
        """
        participant = self.participant
        if not all(isinstance(action, OF_SLICES) for action in actions):
            return True
        return not participant.round.told and (participant.settled or participant.called)

    def _measure(self) -> None:
        """How long the rounds take from when all have proposed: what is left then is for the lines to do."""
        participant = self.participant
        size = 0 if participant.view is None else participant.view.size
        if not size or len(participant.round.proposals) < size:
            self._all_proposed = None
        elif self._all_proposed is None:
            self._all_proposed = time.monotonic()

    def _is_early(self, event: moves.Arrived | moves.Heard) -> bool:
        if isinstance(event, moves.Arrived):
            verdict = self.participant.verdict(event.view, event.base, event.kind)
        elif isinstance(event.message, Proposed):
            verdict = self.participant.verdict(event.message.view, event.message.base, "proposed")
        else:
            verdict = self.participant.verdict(event.message.view, 0)
        return verdict is Verdict.LATER

    def _do(self, work: list[Work]) -> None:
        while work:
            done = self._slices.work(work.pop(0))
            if done is not None:
                with self._waiting.changed:
                    work += self._handle(done)

    def _perform(self, actions: list[moves.Action]) -> list[Work]:
        """Under the lock: do all but the work on slices, which is returned."""
        work: list[Work] = []
        for action in actions:
            promised = self._slices.promise(action)
            if promised is not None:
                work.append(promised)
                continue
            match action:
                case (
                    moves.SendContribution() | moves.SendGathered() | moves.SendCombined() | moves.SendWhole()
                ):
                    self._slices.send(action)
                case moves.Tell(to, message):
                    self._say(to, message)
                case moves.Commit():
                    self._commit(action)
                case moves.Stand(view):
                    self._answered = view
                    self._exchange.fence(self.participant.fence)
                    self._report(self._standing(view))
                case moves.Join(view):
                    self._patient.prescribe(None)
                    self._slices.join(view)
                case moves.Heal():
                    self._patient.prescribe(action)
                case moves.Refill():
                    self.refill = True
                case moves.Report(message):
                    self._report(message)
                case moves.Replaced(why):
                    log.warning("worker %s starts over: %s", self._waiting.name, why)
                    self._patient.prescribe(None)
                    self.outcome, self.refill = Outcome("replaced"), False
                    self.lateness.over()
                    self._slices.forget()
        return work

    def _say(self, to: tuple[str, ...], message: ToPeer) -> None:
        header = Header(Kind.MESSAGE, message.view, getattr(message, "base", 0))
        payload = encode(message)
        for peer in to:
            self._exchange.send(peer, header, payload)

    def _commit(self, action: moves.Commit) -> None:
        if action.own and self._driver.combined is not self._driver.contribution:
            np.copyto(self._driver.combined, self._driver.contribution)
        if self._all_proposed is not None:  # one round that hung must not make the next ones patient
            took = time.monotonic() - self._all_proposed
            self._took.append(min(took, 2 * max((OVERDUE_SECONDS, *self._took))))
        if view := self.participant.view:  # of what comes twice, the second must not overwrite what is next
            self._exchange.fence(view.number, action.version.number)
        self._progress.commit(action.version, action.contributions)
        counted = [c for c in action.contributions if c.weight > 0]
        self._slices.commit(action.version, action.contributions)
        self._made_of = action.contributions
        self._unacknowledged.add(Applied(action.version, "", action.contributions))
        late = any(c.late for c in action.contributions)
        self.outcome = Outcome("committed", action.weight, tuple(c.present for c in counted), late)
        self.refill = False
        self.lateness.over()

    def _abstain(self) -> None:
        """The round goes on without what the script's thread is about to learn; on a thread of its own."""
        if self._driver.shares_buffer:
            self.yield_vectors()
        with self._waiting.changed:
            work: list[Work] = []
            if self.participant.phase == "member" and self.outcome is None:
                nothing = Contribution(self.participant.incarnation, 0.0, read=self._progress.read, late=True)
                work = self._handle(moves.Propose(nothing))
        self._do(work)

    # --- what the hub knows of it, under the lock --------------------------------------------------

    @property
    def shares(self) -> bool:
        """It is a member, and there are others."""
        return self.participant.phase == "member" and bool(self.participant.others)

    def standing(self) -> Standing | None:
        """Where this member stands; None for who is no member."""
        return self._standing(self._answered) if self.participant.view is not None else None

    def _standing(self, view: int) -> Standing:
        participant = self.participant
        return Standing(
            view=view,
            version=participant.version,
            stops_at=participant.version.number if participant.stops_at is None else participant.stops_at,
            held=self._progress.held(),
            unacknowledged=self._unacknowledged.all,
            member_of=participant.view,
            healed=participant.phase in ("member", "rolling"),
            replays=participant.replays,
            holdings=self._progress.saved(),
        )

    def adopted(self, digest: str) -> None:
        """The driver holds the version, with this digest: tell the hub."""
        participant = self.participant
        self.lateness.over()
        self.lateness.look()
        if participant.view is None:
            return
        testimony.adopted(participant.version, digest, self._made_of)
        number, contributions = participant.version.number, None
        done_at = self._progress.done_at
        last = bool(self._progress.stopped) or (
            done_at is not None and number == done_at + self._driver.trailing
        )
        applied = self._unacknowledged.adopted(number, digest, last=last)
        if applied is not None and participant.rank == 0:
            contributions = applied.contributions
        self._report(Applied(participant.version, digest, contributions, last))

    def acknowledged(self, number: int) -> None:
        """The hub has every version up to this one."""
        self._unacknowledged.acknowledged(number)

    @property
    def unacknowledged(self) -> tuple[Applied, ...]:
        """The versions that the hub may not know of."""
        return self._unacknowledged.all

    def repeat(self) -> None:
        """Tell the hub once more of every version that it has not acknowledged."""
        for applied in self._unacknowledged.all:
            self._report(applied)

    def waiting_for(self) -> str:
        """Names of the members whose proposal or slices this round lacks."""
        return ", ".join(self.participant.missing()) if self.participant.round.told else ""

    @property
    def called(self) -> bool:
        """Others need the script of this worker in a round, or in its place in the loop."""
        waited_for = self._driver.needs_user_step and self._donor.pending
        return self.participant.called or self.outcome is not None or waited_for

    def press(self) -> None:
        """Ask again for what is missing, if nothing has come for a while. Not under the lock.

        A while is what a recent round took on these lines; bytes that come in are no silence.
        """
        with self._waiting.changed:
            participant, now = self.participant, time.monotonic()
            unsettled = participant.phase == "member" and not participant.settled  # the script may wait
            stuck = (
                participant.round.told
                or participant.phase == "rolling"
                or participant.opening is not None
                or unsettled
            )
            received = self._exchange.received_bulk_bytes
            if received != self._received:
                self._received, self._moved = received, now
            patience = max(self._took, default=0.0) * self._waiting.patience
            if not stuck or now - self._moved <= max(OVERDUE_SECONDS, patience):
                return
        self.tell(moves.Overdue())

    # --- what peers say, on the exchange's threads -------------------------------------------------

    def place(self, peer: str, header: Header, loan: Loan | None = None) -> memoryview | None:
        """Where a slice, or a part of a state, goes."""
        if header.kind is not Kind.SNAPSHOT:
            return self._slices.place(peer, header, loan)
        with self._waiting.changed:
            return self._patient.place(peer, header)

    def arrived(self, peer: str, header: Header, payload: memoryview) -> Callable[[], None] | None:
        """A message, slice or part of a state is complete; returns what is to be done about a slice."""
        if header.kind is Kind.MESSAGE:
            try:
                message = decode_for_peer(payload)
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                raise WireError(f"{payload.nbytes} bytes are no message between members: {error}") from error
            if isinstance(message, Healing):
                self._heard_of_healing(peer, message)
            else:
                self.tell(moves.Heard(peer, message))
        elif header.kind is Kind.SNAPSHOT:
            self._patient.arrived(peer, header, payload)
        elif self._slices.take_in(peer, header, payload):
            return partial(
                self.tell,
                moves.Arrived(
                    KINDS[header.kind],
                    peer,
                    header.view,
                    header.base,
                    header.segment,
                    header.slice,
                    header.weight,
                    header.subset,
                ),
            )
        return None

    def _heard_of_healing(self, peer: str, message: Healing) -> None:
        with self._waiting.changed:
            match message:
                case SnapshotWanted():
                    self._donor.asked(peer, message)
                    self._waiting.changed.notify_all()
                case PartsWanted():
                    self._donor.asked_for_parts(peer, message)
                case Offered():
                    self._patient.offered(peer, message)

    def lost(self, peer: str) -> None:
        """A connection to or from this member broke: what it was to give will not come."""
        with self._waiting.changed:
            self._patient.lost(peer)

    def release(self) -> None:
        """Let go of whoever waits to place something: this incarnation is out."""
        with self._waiting.changed:
            self.lateness.stop()
            self._slices.release()

    # --- on the script's thread --------------------------------------------------------------------

    def oblige(self) -> None:
        """What the script's thread does wherever it waits: give the state to who asked; under the lock."""
        participant = self.participant
        if self.outcome is None:
            self._donor.give()
        if participant.view is not None and participant.settled:
            self._slices.reclaim(participant.view.number, participant.version.number, wait=False)

    def problem(self, segment: int) -> str:
        """Why a segment of the contribution cannot travel encoded; "" where it can."""
        return self._slices.problem(segment)

    def take_outcome(self) -> Outcome | None:
        """How the round has ended, once."""
        with self._waiting.changed:
            outcome, self.outcome = self.outcome, None
            if outcome is not None:
                self.lateness.absent = False
                self.lateness.claim()  # what has been combined is read until the driver has adopted it
        if outcome is not None:
            self._slices.take_back()
        return outcome

    def vacate(self) -> None:
        """The script may write to the vectors, though others may still read them or fill them."""
        self._slices.vacate()

    def yield_vectors(self) -> None:
        """The driver may write to the vectors: nobody else does any more."""
        with self._waiting.changed:
            view, base = self.participant.view, self.participant.version.number
        if view is not None:
            self._slices.clean(view.number, base)
        self._slices.vacate()

    def write_again(self) -> bool:
        """Write the contribution of an aborted round again; True if all segments are to be announced."""
        with self._waiting.changed:
            wanted, self.refill = self.refill and self.participant.view is not None, False
        if wanted:
            self.yield_vectors()
            self._driver.refill()
        return wanted

    @property
    def heals(self) -> bool:
        """There is a state to be fetched."""
        return self._patient.heal is not None

    def heal(self) -> bool:
        """Become a member with the state of another; False when the view changed, or changes, meanwhile."""
        heal = self._patient.heal
        version = None if heal is None else self._patient.fetch(heal)
        with self._waiting.changed:
            if version is None or self._patient.heal is not heal:
                return False
            self._patient.prescribe(None)
            self.outcome = None
            self.lateness.over()
            work = self._handle(moves.Installed(version))
            entered = self.participant.phase == "member"
        self._do(work)
        return entered


def _asks(event: moves.Event) -> bool:
    """Another lacks something, perhaps because of what this one lacks: no reason to wait with asking."""
    return isinstance(event, moves.Heard) and isinstance(event.message, Want)
