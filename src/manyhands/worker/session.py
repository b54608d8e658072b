"""One worker's place in a pool with a hub, from joining to leaving."""

from __future__ import annotations

import logging
import time

from msgspec.structs import replace

from manyhands.core import moves
from manyhands.core.messages import Dataset, Declared, Left, Span
from manyhands.core.testimony import Began, Concluded, Partitioned
from manyhands.errors import ConfigurationError, ModelError, UserError
from manyhands.exchange.memory import Memory
from manyhands.sharing.strategy import Strategy
from manyhands.worker import termination, testimony
from manyhands.worker.batches import Ended, Idle
from manyhands.worker.driving import Driver, Outcome
from manyhands.worker.incarnation import Incarnation
from manyhands.worker.part import Part
from manyhands.worker.progress import Progress
from manyhands.worker.settings import Settings
from manyhands.worker.waiting import Waiting

log = logging.getLogger("manyhands.worker")

LEAVE_SECONDS = 30.0
LAST_CHECKPOINTS, LAST_ORDER_SECONDS = 2, 0.5
"""One may be under way when the last is due; and how long the hub may take to say so."""

EVICTIONS = 3
REPEATS = 128  # batches given again in a row, at least; a script may add up the gradients of some
HOPELESS = 100  # rejections of this worker in a row, while others learn
BARREN = 3  # versions in a row that hold nothing, one of this worker's rejections among them
SICK = 3  # rejections of this worker in a row, while others learn: its own state may be wrong
CURES = 2  # times that it takes up the state of the others for that
REMEDY = (
    "give a GradScaler, if there is one, to share(..., also=[scaler]), which it must see; otherwise look for "
    "what is not a number in the data, lower the learning rate or clip the gradients"
)


class Session:
    """What a script holds of the pool: implements `driving.Rounds` and `batches.Leases`.

    It stays when this worker's incarnation is replaced: evicted, it connects as a new one, and heals.
    All is called on the script's thread, but for `problem` and `ready`.
    """

    alone = False

    def __init__(self, settings: Settings) -> None:
        """Joins; raises what the hub answers, or HubUnreachable."""
        self.progress = Progress()
        self._settings = settings
        self._waiting = Waiting(settings.name, settings.patience)
        self._shared: tuple[Driver, Strategy] | None = None
        self._memory: Memory | None = None
        self._left = self._leaving = False
        self._rejected = self._barren = 0
        self._cures, self._sick = 0, ""
        self._proposed, self._blemish = False, ""
        self._incarnation = Incarnation(settings, settings.run, self.progress, self._waiting)

    @property
    def rank(self) -> int:
        """This worker's place in the view, or among those expected before the first one.

        Once it has left: its place when the last version was made, so that just one worker is 0.
        """
        part = self._incarnation.part
        rank = -1
        if part is not None:
            rank = part.participant.seat if self._left else part.participant.rank
        return rank if rank >= 0 else self._incarnation.position

    @property
    def size(self) -> int:
        """Members of the view, or the workers expected before the first one."""
        part = self._incarnation.part
        view = None if part is None else part.participant.view
        return view.size if view else self._incarnation.expected

    @property
    def view(self) -> int:
        """The number of the view; 0 before the first one."""
        part = self._incarnation.part
        view = None if part is None else part.participant.view
        return view.number if view else 0

    # --- membership --------------------------------------------------------------------------------

    def share(self, driver: Driver, strategy: Strategy) -> None:
        """Become a member, with the state of the pool."""
        self._shared = driver, strategy
        self._waiting.begin()
        self._memory = self._lend(driver)
        driver.attach(self)
        self._incarnation.share(driver, strategy, self._memory)
        self._enter()
        self.settled()  # the one with whose state all begin gives it before its first step
        testimony.expose(driver)

    def _lend(self, driver: Driver) -> Memory | None:
        """Have the driver's vectors in memory that other workers on this host can read."""
        machine = self._settings.machine
        if not machine:
            return None
        try:
            vectors = 1 if driver.shares_buffer else 2
            memory = Memory(vectors, driver.layout.nbytes, len(driver.layout.segments), machine)
        except OSError as error:
            log.warning(
                "worker %s has no memory to share, and sends everything through sockets: %s",
                self._settings.name,
                error,
            )
            return None
        driver.allocate = memory.vector
        return memory

    def heal(self) -> None:
        """Fetch the state of the pool from a member."""
        self._enter()

    def _enter(self) -> None:
        """Become a member, with the state of the pool; as a new incarnation where this one was evicted."""
        self._waiting.here()
        for _ in range(EVICTIONS):
            if self._incarnation.evicted:
                self._join_again()
            if self._admitted():
                testimony.say(Began(self._part.participant.version))
                return
        raise ConfigurationError(
            f"the hub evicted worker {self._settings.name} {EVICTIONS} times while it joined, the last time "
            f"because {self._incarnation.evicted}; see the log of this machine, and the hub's"
        )

    def _join_again(self) -> None:
        evicted = self._incarnation
        log.warning("worker %s joins again: %s", self._settings.name, evicted.evicted)
        evicted.close()
        self.progress.forget()
        self._incarnation = Incarnation(
            self._settings, evicted.run, self.progress, self._waiting, evicted.epoch
        )
        self._incarnation.share(*self._model, self._memory)

    def _admitted(self) -> bool:
        """Wait for a view, and for the state if this worker is not its source; False when evicted."""
        incarnation, part = self._incarnation, self._part
        while True:
            self._waiting.until(
                lambda: incarnation.evicted or part.heals or part.participant.phase == "member",
                lambda: "a place in the pool",
            )
            if incarnation.evicted:
                return False
            if not part.heals or part.heal():
                return True

    def conclude(self, driver: Driver) -> None:
        """Share what is left, all members up to the same version where all came to the end of the data."""
        progress, last = self.progress, self.progress.done_at
        if last is None or self._version > last + driver.trailing:  # of late the data were the script's own
            while not progress.stopped and driver.flush() is not None:
                pass
            return
        while not progress.stopped and self._version < last + driver.trailing:
            driver.idle()
        if progress.pending:
            log.warning(
                "worker %s has learned something after the last data were shared, which no version has; take "
                "all steps within the loop over the batches",
                self._settings.name,
            )

    def leave(self, *, finished: bool, why: str, told: bool = False, raised: bool = False) -> None:
        """Say goodbye and close everything; who has finished first sees that all hold the last version.

        `raised`: the script has, and so it may be for the batch that it was at.
        """
        self._left = True
        with self._waiting.changed:
            batch = self.progress.batch if raised else ()
        try:
            if finished:
                self._finish()
                if not self._incarnation.evicted:
                    testimony.say(Concluded())
        finally:
            self._incarnation.take_leave(Left(finished, why, told, batch))
            self._incarnation.close()

    def _finish(self) -> None:
        """See that all hold the last version, and that the hub knows what it is made of."""
        incarnation, part, waiting = self._incarnation, self._incarnation.part, self._waiting
        if unheard := self.progress.unheard():
            log.warning(
                "worker %s logged %s after its last step, so no version has it: log it with a step, or "
                "write it to a file",
                self._settings.name,
                ", ".join(unheard),
            )
        self._warn_of_leaving_alone()
        deadline = time.monotonic() + LEAVE_SECONDS * waiting.patience

        def over() -> object:
            return incarnation.evicted or waiting.error

        def held() -> object:
            return part is None or part.participant.view is None or part.participant.settled or over()

        def known() -> object:
            return over() or (incarnation.connected and not (part and part.unacknowledged))

        waiting.wait(held, deadline - time.monotonic())
        with waiting.changed:
            if part is not None:
                part.repeat()
        if not waiting.wait(known, deadline - time.monotonic()):
            with waiting.changed:
                numbers = sorted(applied.version.number for applied in part.unacknowledged) if part else []
                log.warning(
                    "worker %s leaves after %.0f s though the hub %s%s; where nobody else "
                    "tells it, the summary of the run lacks what they hold",
                    self._settings.name,
                    LEAVE_SECONDS * waiting.patience,
                    "is silent" if incarnation.connected else "is away",
                    f", and has not acknowledged the versions {numbers}" if numbers else "",
                )
        if part is not None:
            self._keep_the_last(part)

    def _keep_the_last(self, part: Part) -> None:
        """Write the checkpoint of the end, if the hub wants it: it may say so only after another."""
        saver = part.saver
        for _ in range(LAST_CHECKPOINTS):
            if not saver.busy:
                return
            with self._waiting.changed:
                if part.outcome is None:
                    saver.save()
            saver.finish()
            self._waiting.wait(lambda: saver.busy, LAST_ORDER_SECONDS)

    def _warn_of_leaving_alone(self) -> None:
        """Nothing ends the batches of the others here: where they train on, their model is another."""
        part, progress = self._incarnation.part, self.progress
        with self._waiting.changed:
            undone = [i for i, data in progress.holdings.items() if progress.studied(i) and not data.done]
        if part is not None and undone and not progress.stopped and self.size > 1:
            log.warning(
                "worker %s leaves with the model of version %d while samples of data set %s are left: who "
                "trains on ends with another model; to end the batches of all workers at the same "
                "version, use pool.stop_when(...) in place of a `break`",
                self._settings.name,
                part.participant.version.number,
                ", ".join(map(str, undone)),
            )

    @property
    def _model(self) -> tuple[Driver, Strategy]:
        if self._shared is None:
            raise UserError("take batches within `with pool.share(model, ...)`, and not before it")
        return self._shared

    @property
    def _part(self) -> Part:
        part = self._incarnation.part
        assert part is not None
        return part

    @property
    def _version(self) -> int:
        return self._part.participant.version.number

    # --- rounds (driving.Rounds) -------------------------------------------------------------------

    @property
    def hurry(self) -> bool:
        """Everyone else waits for this worker, or it has lost its place and learns for nobody."""
        self._waiting.here()
        with self._waiting.changed:
            self._waiting.meanwhile()
            return self._part.participant.hurry or bool(self._incarnation.evicted)

    @property
    def over(self) -> bool:
        """The pool has stopped; or all data of the batch in hand are shared, and nobody begins a round."""
        progress, driver = self.progress, self._model[0]
        with self._waiting.changed:
            if progress.stopped or not progress.late or self._part.participant.called:
                return bool(progress.stopped)
            return progress.done_at is not None and self._version >= progress.done_at + driver.trailing

    def learned(self, *, earlier: bool = False) -> None:
        """The script has learned from the batch in hand, or an earlier one."""
        with self._waiting.changed:
            self.progress.learned(earlier=earlier)

    def problem(self, segment: int) -> str:
        """Why a segment of the contribution cannot travel encoded; "" where it can."""
        return self._part.problem(segment)

    def ready(self, segment: int) -> None:
        """A segment of the contribution is final."""
        with self._waiting.changed:
            weight = self.progress.weigh()
        if weight > 0 and not self._incarnation.evicted:
            self._part.tell(moves.Ready(segment, weight))

    def missed(self, *, claim: bool = False, wait: bool = True) -> Outcome | None:
        """How a round ends that goes on without this worker; else None, and with a claim none will."""
        with self._waiting.changed:
            part = self._part
            lateness = part.lateness
            if not lateness.absent:
                if claim:
                    lateness.claim()
                return None
        return self._ended(part) if wait else part.take_outcome()

    def propose(self, present: bytes, rejected: str = "") -> None:
        """Propose, unless this worker was replaced between two rounds, which is the outcome then."""
        part = self._part
        with self._waiting.changed:
            if part.outcome is None:
                part.saver.save()
            self._proposed = not self._incarnation.evicted and part.outcome is None
            if not self._proposed:
                return
            self._blemish = rejected
            contribution = self.progress.propose(self._incarnation.name, present, rejected)
            if self._leaving:
                contribution = replace(contribution, leaving=True)
        if rejected:
            log.warning("worker %s: this contribution does not count: %s", self._settings.name, rejected)
        part.tell(moves.Propose(contribution))

    def outcome(self, *, wait: bool = True) -> Outcome | None:
        """How the round that was proposed has ended; None where it has not, unless told to wait for it."""
        part = self._part
        if not self._proposed:
            part.take_outcome()
            return Outcome("replaced")
        if not wait:
            return part.take_outcome()
        outcome = self._ended(part)
        if outcome.kind == "committed":
            self._despair(outcome)
        return outcome

    def _ended(self, part: Part) -> Outcome:
        try:
            with termination.postponed():
                return self._outcome(part)
        except BaseException:
            part.vacate()  # the script goes on, if only to its end, and may write to its gradients
            raise

    def finish(self, present: bytes, rejected: str = "") -> Outcome:
        """Propose, and wait for the outcome."""
        self.propose(present, rejected)
        outcome = self.outcome()
        assert outcome is not None
        return outcome

    def _despair(self, outcome: Outcome) -> None:
        """Raise where going on is of no use: the same batches would be read again and again."""
        rejected, total_weight = self._blemish, outcome.total_weight
        self._rejected = self._rejected + 1 if rejected else 0
        self._barren = self._barren + 1 if rejected and not total_weight and not outcome.late else 0
        if self._rejected % SICK == 0 and rejected and total_weight and self._cures < CURES:
            self._cures += 1
            self._sick = (
                f"its last {SICK} contributions did not count because of {rejected}, while those of others "
                "did, so it takes up their state"
            )
        if self._barren >= BARREN:
            raise UserError(
                f"nothing was learned in the last {BARREN} versions, for no contribution counted, that of "
                f"worker {self._settings.name} because of {rejected}: {REMEDY}"
            )
        if self._rejected >= HOPELESS:
            raise ModelError(
                f"the last {HOPELESS} contributions of worker {self._settings.name} did not count because of "
                f"{rejected}: {REMEDY}"
            )

    def _outcome(self, part: Part) -> Outcome:
        while True:
            self._waiting.until(
                lambda: part.outcome or part.refill,
                lambda: (
                    f"{part.waiting_for() or 'the hub'}; the hub drops who is silent for its lease, or is in "
                    "one step for too long"
                ),
            )
            outcome = part.take_outcome()
            if outcome is not None:
                return outcome
            if part.write_again():
                for segment in range(len(self._model[0].layout.segments)):
                    self.ready(segment)

    def adopted(self) -> None:
        """The outcome is applied: say so."""
        digest = self._model[0].digest()
        with self._waiting.changed:
            self._part.adopted(digest)
            doubts = self.progress.doubts() if self.rank == 0 else ()
        for doubt in doubts:
            log.warning(doubt)
        if self._sick:
            self.resign(self._sick)
            self._sick = ""

    def resign(self, why: str) -> None:
        """Be a new incarnation from the next `heal` on, for what this one holds is wrong."""
        self._incarnation.resign(why)

    def settled(self) -> None:
        """Wait until every member holds the last version, or this worker is none of them any more."""
        incarnation, part = self._incarnation, self._part
        self._waiting.until(
            lambda: incarnation.evicted or part.outcome or part.participant.settled,
            lambda: "every member to hold the last version",
        )
        part.yield_vectors()

    # --- data (batches.Leases) ---------------------------------------------------------------------

    def declare(self, dataset: Dataset) -> None:
        """The script partitions a data set."""
        testimony.say(Partitioned(dataset))
        with self._waiting.changed:
            self.progress.declare(dataset)
            self._incarnation.send(Declared(dataset))

    def take(self, dataset: int, samples: int) -> tuple[Span, ...] | Idle | Ended:
        """The spans of the next batch; while there is none, takes part in the rounds that others begin."""
        driver = self._model[0]
        obliging = not driver.needs_user_step

        def wanted() -> bool:
            return termination.asked() or self._part.called or self.progress.unshared(dataset)

        while True:
            if termination.asked():
                self._hand_over(driver)
            termination.check()
            with termination.postponed():
                taken = self._incarnation.leasing.take(dataset, samples, obliging=obliging, wanted=wanted)
            if taken is None and termination.asked():
                continue
            if taken is not None:
                if isinstance(taken, Ended):
                    self.put_down(dataset, ended=True)
                return taken
            if driver.flush() is not None:
                continue
            with self._waiting.changed:
                rests = self.progress.rest(dataset)
                repeats = max(REPEATS, 2 * self.progress.stride(dataset))
            if not driver.needs_user_step:
                driver.idle()
            elif rests <= repeats:
                with self._waiting.changed:
                    return Idle(repeat=True, known=self.progress.holdings[dataset].learned(samples))
            elif self.progress.studied(dataset):
                raise UserError(
                    f"the loop over data set {dataset} was given a batch again {repeats} times, because "
                    "others wait for a backward() of this worker or it has read samples without one, and "
                    "none came; call backward() for every batch of a data set that the model learns from"
                )
            else:
                return Ended()

    def _hand_over(self, driver: Driver) -> None:
        """This worker is told to end: what it has learned goes into one more version, if there is time.

        And others who fetch the state get it: this one may be the only one that has it.
        """
        self._leaving = True
        with termination.postponed():
            while not driver.needs_user_step and not self.progress.stopped and driver.flush() is not None:
                pass
            self.settled()

    def put_down(self, dataset: int, *, ended: bool = False, unloaded: tuple[Span, ...] = ()) -> None:
        """The loop over the batches was left; or it has ended, and there will be none again."""
        with self._waiting.changed:
            self.progress.put_down(dataset, ended=ended, unloaded=unloaded)

    def peek(self, dataset: int, samples: int) -> tuple[Span, ...]:
        """What `take` would give next."""
        with self._waiting.changed:
            return self.progress.holdings[dataset].peek(samples)

    def committed(self, dataset: int) -> int:
        """Samples the pool has committed over all epochs."""
        with self._waiting.changed:
            return self.progress.holdings[dataset].total_committed
