"""The slices of the shared vector where a strategy encodes them on their way."""

from __future__ import annotations

from threading import Condition

import numpy as np

from manyhands.core import moves
from manyhands.core.messages import View
from manyhands.core.rounds import Participant
from manyhands.errors import Unencodable, WireError
from manyhands.exchange.memory import Loan
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import DType, Header, Kind
from manyhands.sharing.combine import mean
from manyhands.sharing.encode.chain import Encoding
from manyhands.worker.coding import Coding, Mine
from manyhands.worker.driving import Driver
from manyhands.worker.slices import Input, Slices, Work


class CodedSlices(Slices):
    """Contributions and combined slices as bytes, each in memory of its own; whole segments as they are.

    A contribution is encoded without the lock, slice by slice, each sent while the next is encoded. Those of
    others are decoded as they come in.
    """

    def __init__(
        self,
        driver: Driver,
        participant: Participant,
        exchange: Exchange,
        changed: Condition,
        encoding: Encoding,
    ) -> None:
        super().__init__(driver, participant, exchange, None, changed)
        self._coding = Coding(encoding, driver.layout)

    def join(self, view: View) -> None:
        super().join(view)
        self._coding.join()

    def check(self, segment: int) -> None:
        a, b = self._driver.layout.segments[segment]
        self.unencodable = self.unencodable or self._coding.problem(self._driver.contribution, a, b)

    def commit(self, base: int, subset: int, *, counted: bool) -> None:
        view = self._participant.view
        self._coding.commit(-1 if view is None else view.number, base, subset, counted=counted)

    def forget(self) -> None:
        self._coding.forget()

    # --- what goes out -----------------------------------------------------------------------------

    def promise(self, action: moves.Action) -> Work | None:
        return action if isinstance(action, moves.SendContribution) else super().promise(action)

    def work(self, action: Work) -> moves.Combined | None:
        if isinstance(action, moves.Combine):
            return super().work(action)
        with self._one_at_a_time[action.segment]:
            try:
                for rank in action.ranks:
                    self._contribute(action, rank)
            except Unencodable as error:
                self.unencodable = str(error)
        return None

    @property
    def _size(self) -> int:
        return 0 if self._participant.view is None else self._participant.view.size

    def _contribute(self, action: moves.SendContribution, rank: int) -> None:
        view, base, segment = action.view, action.base, action.segment
        with self._changed:
            parts = self._current(view, base, segment)
        if parts is None:
            return
        content = self._coding.contribution(
            segment, rank, view, base, self._driver.contribution, *parts[rank]
        )
        with self._changed:
            if self._current(view, base, segment) is None:
                return
            assert self._participant.view is not None
            to = self._participant.view.members[rank].incarnation
            header = Header(Kind.CONTRIBUTION, view, base, segment, rank, weight=action.weight)
            if not self._exchange.carries(to, header):
                self._exchange.send(to, header, content.data)

    def _current(self, view: int, base: int, segment: int) -> list[tuple[int, int]] | None:
        """How this segment is cut, while the round is under way here; under the lock."""
        participant = self._participant
        if participant.view is None or (participant.view.number, participant.version.number) != (view, base):
            return None
        return self._driver.layout.slices(segment, participant.view.size)

    def _made_of(self, action: moves.SendCombined, a: int, b: int) -> tuple[memoryview, DType] | None:  # noqa: ARG002
        content = self._coding.combined(action.segment, action.view, action.base, action.subset)
        return None if content is None else (content.data, DType.BYTES)

    # --- means -------------------------------------------------------------------------------------

    def _reduce(self, action: moves.Combine, mine: Mine, inputs: list[Input]) -> bool:
        segment, view, base = action.segment, action.view, action.base
        own, size, a, b = mine
        arrays = [array for array, _ in inputs]
        if own in action.ranks:
            content = self._coding.contribution(segment, own, view, base, self._driver.contribution, a, b)
            decoded = np.empty(b - a, self._driver.layout.dtype)
            self._coding.decode(content, decoded, size, combined=False)
            arrays[action.ranks.index(own)] = decoded
        result = np.empty(b - a, self._driver.layout.dtype)
        mean(result, arrays, action.weights)
        self._coding.combine(action, mine, result, self._driver.combined[a:b])
        return True

    # --- what comes in -----------------------------------------------------------------------------

    def place(self, peer: str, header: Header, loan: Loan | None = None) -> memoryview | None:
        if header.kind is Kind.WHOLE:
            return super().place(peer, header, loan)
        with self._changed:
            self._changed.wait_for(lambda: self._placeable(header), self._exchange.deadlines.stall)
            where, size = self._where(peer, header), self._size
        if where is None or header.dtype is not DType.BYTES:
            return None
        expected = self._coding.nbytes(len(where), size, combined=header.kind is Kind.COMBINED)
        if header.length != expected:
            raise WireError(f"length: {header.length} bytes, expected {expected} for this slice, encoded")
        return memoryview(bytearray(expected))

    def take_in(self, peer: str, header: Header, payload: memoryview) -> bool:
        if header.kind is Kind.WHOLE:
            return True
        with self._changed:
            where, size = self._where(peer, header), self._size
        if where is None:
            return False
        combined = header.kind is Kind.COMBINED
        if combined:
            self.clean(header.view, header.base)
        else:
            self._take_in(peer, header, where, None)
        self._coding.decode(np.frombuffer(payload, np.uint8), where, size, combined=combined)
        return True
