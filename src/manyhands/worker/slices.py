"""The slices of the shared vector: where those that come in belong, which go out, and their means."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Condition, Lock
from typing import Final, Literal, NamedTuple, TypeVar

import numpy as np

from manyhands.core import moves
from manyhands.core.messages import Contribution, Version, View
from manyhands.core.rounds import Participant, Verdict, subset_of
from manyhands.errors import ProtocolError, WireError
from manyhands.exchange.memory import Loan, Memory
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import DType, Header, Kind
from manyhands.sharing.combine import Array, mean
from manyhands.worker.driving import Driver

CLEAN_SECONDS = 30.0
KINDS: Final[dict[Kind, Literal["contribution", "combined", "whole"]]] = {
    Kind.CONTRIBUTION: "contribution",
    Kind.COMBINED: "combined",
    Kind.WHOLE: "whole",
}
"""What `core` calls the slices that the exchange carries."""

Work = moves.Combine | moves.SendContribution
Sending = moves.SendContribution | moves.SendGathered | moves.SendCombined | moves.SendWhole


Place = TypeVar("Place")


class Input(NamedTuple):
    """What a member has sent of a slice: in memory of our own, or lent."""

    array: Array
    loan: Loan | None = None


class Slices:
    """Carries out what a participant decides about slices, over an exchange, on a driver's vectors.

    Contributions of other members land in memory of their own, and what is combined here for another reducer
    lies in such; combined slices lie right in `Driver.combined`. There nothing of an older round may be
    written any more once a newer one begins to, or the script: neither by the exchange, which is fenced,
    nor by a mean that is still being taken. And nothing may be sent any more from memory that is written:
    what is queued of an older round is dropped, and what is half sent is finished from a copy
    (`Exchange.retire`). Members on the same host read both vectors where they are, if they lie in
    a `memory`, whose stamps say when they may not any more.
    """

    def __init__(
        self,
        driver: Driver,
        participant: Participant,
        exchange: Exchange,
        memory: Memory | None,
        changed: Condition,
    ) -> None:
        self._driver, self._participant = driver, participant
        self._exchange, self._memory, self._changed = exchange, memory, changed
        self._dtype = DType.FLOAT32 if driver.layout.dtype == np.float32 else DType.FLOAT64
        self._landing: dict[tuple[int, int, int], Array] = {}  # by sender, segment and slice, as the next
        self._inputs: dict[tuple[int, int, int], Input] = {}
        self._gathered: dict[tuple[int, int], Array] = {}
        self._parts: list[list[tuple[int, int]]] = []
        self._passed_on = frozenset[int]()
        self._combining: Counter[int] = Counter()
        self._one_at_a_time = [Lock() for _ in driver.layout.segments]
        self._made: dict[tuple[int, int], tuple[int, int]] = {}
        self._clean = 0, 0
        self._over = self._reclaimed = 0, 0
        self._released = False

    # --- views, under the lock ---------------------------------------------------------------------

    def join(self, view: View) -> None:
        """A view takes effect: connect to its members, and have a place for what they will send."""
        self._exchange.fence(view.number)
        self._exchange.members({member.incarnation: (member.host, member.port) for member in view.members})
        self._landing, self._inputs, self._gathered = {}, {}, {}
        layout, shares = self._driver.layout, view.shares or (1,) * view.size
        self._parts = [layout.slices(segment, shares) for segment in range(len(layout.segments))]
        self._passed_on = frozenset(self._participant.hosts.combines(self._participant.rank))
        self.vacate()

    def release(self) -> None:
        """Let go of whoever waits in `place`: nothing is taken any more, and nothing lent."""
        self._released = True
        self.vacate()
        self._changed.notify_all()

    def vacate(self) -> None:
        """The driver, or its owner, may write to both vectors: nothing in them is lent any more."""
        self._withdraw(Kind.CONTRIBUTION)
        self._withdraw(Kind.COMBINED)

    def _withdraw(self, kind: Kind) -> None:
        if self._memory is not None:
            self._memory.withdraw(kind)

    # --- what goes out, under the lock -------------------------------------------------------------

    def send(self, action: Sending) -> None:
        """Queue slices for members; they must stay untouched until the exchange has sent them.

        Not what is on its way already, nor what nobody needs any more, though somebody asks for it.
        """
        participant, layout = self._participant, self._driver.layout
        view, base, segment = action.view, action.base, action.segment
        if (view, base) < self._over:
            return
        if isinstance(action, moves.SendWhole):
            a, b = layout.segments[segment]
            header = Header(Kind.WHOLE, view, base, segment, dtype=self._dtype)
            if not self._exchange.carries(action.to, header):
                self._exchange.send(action.to, header, self._driver.combined[a:b].data)
            return
        match action:
            case moves.SendContribution():
                own = subset_of((participant.rank,))
                for slice_, rank in action.to:
                    a, b = self._bounds(segment, slice_)
                    payload = self._driver.contribution[a:b].data
                    self._send_contribution(action, slice_, rank, own, (payload, self._dtype))
            case moves.SendGathered():
                self._send_gathered(action)
            case moves.SendCombined() if not self._is_outdated(action):
                self._send_combined(action, action.ranks)

    def _send_contribution(
        self,
        action: moves.SendContribution | moves.SendGathered,
        slice_: int,
        rank: int,
        subset: int,
        content: tuple[memoryview, DType],
    ) -> None:
        payload, dtype = content
        view, base, segment, weight = action.view, action.base, action.segment, action.weight
        header = Header(Kind.CONTRIBUTION, view, base, segment, slice_, dtype, weight, subset)
        if isinstance(action, moves.SendContribution):
            self._publish(header)
        self._send((rank,), header, payload)

    def _send_gathered(self, action: moves.SendGathered) -> None:
        payload = self._gathered[action.segment, action.slice].data
        self._send_contribution(action, action.slice, action.slice, action.subset, (payload, self._dtype))

    def _send_combined(self, action: moves.SendCombined, ranks: tuple[int, ...]) -> None:
        a, b = self._bounds(action.segment, action.slice)
        header = self._combined_header(action, self._dtype)
        self._send(ranks, header, self._driver.combined[a:b].data)

    def _combined_header(self, action: moves.SendCombined, dtype: DType) -> Header:
        view, base, segment, slice_ = action.view, action.base, action.segment, action.slice
        return Header(Kind.COMBINED, view, base, segment, slice_, dtype, subset=action.subset)

    def _send(self, ranks: Iterable[int], header: Header, payload: memoryview) -> None:
        """To whom it is not on its way already."""
        assert self._participant.view is not None
        members = self._participant.view.members
        to = [members[rank].incarnation for rank in ranks]
        to = [member for member in to if not self._exchange.carries(member, header)]
        if header.kind is Kind.CONTRIBUTION:
            for member in to:
                self._exchange.send(member, header, payload)
        elif to:
            self._exchange.send_all(to, header, payload)

    def _bounds(self, segment: int, slice_: int) -> tuple[int, int]:
        """Elements [a, b) of a slice in this view."""
        return self._parts[segment][slice_]

    def _publish(self, header: Header) -> None:
        if self._memory is not None:
            self._memory.publish(header)

    def _is_outdated(self, action: moves.SendCombined) -> bool:
        """The slice is being combined again, over another set."""
        participant, place = self._participant, (action.segment, action.slice)
        known = participant.round.reduced if action.slice == participant.rank else participant.round.staged
        return action.base == participant.version.number and known.get(place, action.subset) != action.subset

    # --- means -------------------------------------------------------------------------------------

    def promise(self, action: moves.Action) -> Work | None:
        """The action, if it is to be done by `work`; under the lock, in which it was decided."""
        if not isinstance(action, moves.Combine):
            return None
        self._combining[action.view] += 1
        return action

    def work(self, action: Work) -> moves.Combined | None:
        """Take the mean of a slice, without the lock; None when its view is over."""
        assert isinstance(action, moves.Combine)
        try:
            return self._combine(action)
        finally:
            with self._changed:
                self._combining[action.view] -= 1
                view = self._participant.view
                if view is None or view.number > action.view:  # others wait for the end of an older view
                    self._changed.notify_all()

    def _combine(self, action: moves.Combine) -> moves.Combined | None:
        self.clean(action.view, action.base)
        # The same slice may be combined again, over a smaller set, before this mean has been taken.
        with self._one_at_a_time[action.segment]:
            with self._changed:
                participant = self._participant
                if participant.view is None or participant.view.number != action.view:
                    return None
                segment, slice_, own = action.segment, action.slice, participant.rank
                wanted = participant.round.reduced.get((segment, slice_))
                if participant.version.number != action.base or wanted != action.subset:
                    return None
                a, b = self._bounds(segment, slice_)
                inputs = [
                    Input(self._driver.contribution[a:b])
                    if rank == own
                    else self._inputs[rank, segment, slice_]
                    for rank in action.ranks
                ]
                if slice_ == own:
                    out = self._driver.combined[a:b]
                else:
                    out = self._place_for(self._gathered, (segment, slice_), b - a)
                reduce = self._reduction(action, out, inputs)
            self._supersede(action, own)
            reduce()
            if any(loan is not None and not loan.stands for _, loan in inputs):
                return None  # a member has lost its place, and writes again: the next view is on its way
            if slice_ == own:
                self._publish(
                    Header(Kind.COMBINED, action.view, action.base, segment, slice_, subset=action.subset)
                )
            return moves.Combined(action.view, action.base, segment, slice_, action.subset)

    def _reduction(self, action: moves.Combine, out: Array, inputs: list[Input]) -> Callable[[], None]:
        """What writes the mean of a slice into its place; of the view it knows all it needs."""
        return partial(mean, out, [array for array, _ in inputs], action.weights)

    def _place_for(self, places: dict[Place, Array], key: Place, elements: int) -> Array:
        """Memory that is kept as long as the view."""
        if key not in places:
            places[key] = np.empty(elements, self._driver.layout.dtype)
        return places[key]

    def _supersede(self, action: moves.Combine, own: int) -> None:
        """Where this slice was combined before in this round, that mean is not sent any more."""
        if self._memory is not None and action.slice == own:
            self._memory.withdraw_combined(action.segment, action.slice)
        kind = Kind.COMBINED if action.slice == own else Kind.CONTRIBUTION
        place, it = (action.segment, action.slice), (action.view, action.base)
        if self._made.get(place) == it:
            self._retire(
                lambda header: (
                    header.kind is kind
                    and (header.view, header.base, header.segment, header.slice) == (*it, *place)
                )
            )
        self._made[place] = it

    # --- memory that is to be written again --------------------------------------------------------

    def clean(self, view: int, base: int) -> None:
        """Before a slice is written: nobody writes or sends one of an older round.

        Not under the lock. Raises ProtocolError where that does not come true in time.
        """
        if self._clean < (view, base):
            with self._changed:
                over = self._changed.wait_for(
                    lambda: not any(count for older, count in self._combining.items() if older < view),
                    CLEAN_SECONDS,
                )
            if not (over and self._exchange.quiesce(view, base, time.monotonic() + CLEAN_SECONDS)):
                raise ProtocolError(
                    f"slices of older rounds were still being {'received' if over else 'combined'} "
                    f"{CLEAN_SECONDS:.0f} s after the one on version {base} had begun in view {view}"
                )
            with self._changed:
                self._clean = max(self._clean, (view, base))
        self.reclaim(view, base)

    def reclaim(self, view: int, base: int, *, wait: bool = True) -> None:
        """Nobody needs slices of rounds before this one any more: nothing of them is sent from now on.

        Unless it may `wait`, one that is half sent may be on its way for another moment.
        """
        if self._reclaimed < (view, base):
            with self._changed:  # before what is queued is looked at: `send` adds no more to it
                self._over = max(self._over, (view, base))
            useless = self._older_than(view, base)
            if wait:
                self._retire(useless)
            elif not self._exchange.retire(useless, time.monotonic()):
                return
            with self._changed:
                self._reclaimed = max(self._reclaimed, (view, base))

    def _older_than(self, view: int, base: int) -> Callable[[Header], bool]:
        return lambda header: header.kind in KINDS and (header.view, header.base) < (view, base)

    def take_back(self) -> None:
        """The round is over for this worker: its contribution is neither sent nor lent any more."""
        self._withdraw(Kind.CONTRIBUTION)
        with self._changed:
            participant = self._participant
            view = participant.view.number if participant.view is not None else None
            base = participant.version.number
        self._retire(
            lambda header: (
                header.kind is Kind.CONTRIBUTION
                and (view is None or (header.view, header.base) < (view, base))
            )
        )

    def _retire(self, useless: Callable[[Header], bool]) -> None:
        if not self._exchange.retire(useless, time.monotonic() + CLEAN_SECONDS):
            raise ProtocolError(f"slices of an older round were still being sent after {CLEAN_SECONDS:.0f} s")

    # --- what comes in, on the exchange's threads --------------------------------------------------

    def place(self, peer: str, header: Header, loan: Loan | None = None) -> memoryview | None:
        """Where a slice goes; waits while it belongs to a view this worker has yet to hear of.

        A contribution that is lent stays where it is.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._placeable(header), self._exchange.deadlines.stall)
            where = self._where(peer, header)
            if where is None or header.dtype is not self._dtype:
                return None
            if where.nbytes != header.length:
                raise WireError(f"length: {header.length} bytes, expected {where.nbytes} for this slice")
            if header.kind is Kind.CONTRIBUTION:
                return self._take_in(peer, header, where, loan)
        self.clean(header.view, header.base)
        return where.data.cast("B") if where.nbytes else memoryview(bytearray(0))

    def take_in(self, peer: str, header: Header, payload: memoryview) -> bool:  # noqa: ARG002
        """A slice has come in, to where `place` has put it; False where nobody needs it any more."""
        if header.kind is Kind.COMBINED and header.slice in self._passed_on:
            with self._changed:
                if self._verdict(header) is Verdict.ACCEPT:
                    self._publish(header)
        return True

    def problem(self, segment: int) -> str:  # noqa: ARG002
        """Why a segment of the contribution cannot travel; "" where it can."""
        return ""

    def commit(self, version: Version, contributions: Sequence[Contribution]) -> None:
        """A round has made a version of these contributions."""

    def forget(self) -> None:
        """This worker takes up the state of another."""

    def owed(self) -> list[Array]:
        """What encodings have lost of contributions as of the last version: it goes with the next ones."""
        return []

    def owe(self, owed: Sequence[Array]) -> None:
        """This worker goes on in the place of one that owed this."""

    def _take_in(self, peer: str, header: Header, landing: Array, loan: Loan | None) -> memoryview:
        """Note where a contribution is read from."""
        assert self._participant.view is not None
        rank = self._participant.view.rank(peer)
        assert rank is not None
        array = landing if loan is None else np.frombuffer(loan.payload, landing.dtype)
        self._inputs[rank, header.segment, header.slice] = Input(array, loan)
        if loan is not None:
            return loan.payload
        return landing.data.cast("B") if landing.nbytes else memoryview(bytearray(0))

    def _placeable(self, header: Header) -> bool:
        participant = self._participant
        if self._released:
            return True
        if participant.frozen:
            return header.view < participant.fence
        current = participant.view.number if participant.view else 0
        if header.view != current:
            return header.view < current
        return header.kind is Kind.CONTRIBUTION or self._verdict(header) is not Verdict.LATER

    def _where(self, peer: str, header: Header) -> Array | None:
        participant, layout = self._participant, self._driver.layout
        if participant.view is None or participant.frozen:
            return None
        rank = participant.view.rank(peer)
        if header.view != participant.view.number or rank is None or header.segment >= len(layout.segments):
            return None
        if header.slice >= participant.view.size:
            return None
        a, b = self._bounds(header.segment, header.slice)
        if header.kind is Kind.CONTRIBUTION:
            if header.base < participant.version.number and participant.phase == "member":
                return None
            if self._has_come(header, rank):
                return None
            if header.slice not in participant.hosts.combines(participant.rank):
                return None
            return self._place_for(self._landing, (rank, header.segment, header.slice), b - a)
        if self._verdict(header) is not Verdict.ACCEPT or self._has_come(header, rank):
            return None
        if header.kind is Kind.WHOLE:
            a, b = layout.segments[header.segment]
        elif rank != participant.hosts.source(participant.rank, header.slice):
            return None
        return self._driver.combined[a:b]

    def _has_come(self, header: Header, rank: int) -> bool:
        """It counts as it came, and is not written over by what is sent again."""
        round_, place = self._participant.round, (header.segment, header.slice)
        if header.kind is Kind.CONTRIBUTION:
            current = header.base == self._participant.version.number
            came = round_.arrived.get(place, {}).get(rank)
            return current and came is not None and came[1] == header.subset
        return header.kind is Kind.COMBINED and round_.staged.get(place) == header.subset

    def _verdict(self, header: Header) -> Verdict:
        return self._participant.verdict(header.view, header.base, KINDS[header.kind])
