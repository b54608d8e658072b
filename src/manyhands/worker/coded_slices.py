"""The slices of the shared vector where a strategy encodes what leaves a host."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Condition

import numpy as np

from manyhands.core import moves
from manyhands.core.messages import View
from manyhands.core.rounds import Participant, subset_of
from manyhands.errors import WireError
from manyhands.exchange.memory import Loan, Memory
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import DType, Header, Kind
from manyhands.sharing.combine import Array, mean
from manyhands.sharing.encode.chain import Encoding
from manyhands.worker.coding import Coding, Made
from manyhands.worker.driving import Driver
from manyhands.worker.slices import Input, Slices, Work

Term = tuple[int, float, Array]
"""Of a mean: whose it is, its weight, and the values."""


class CodedSlices(Slices):
    """Slices between hosts as bytes, each in memory of its own; on one host, and whole segments, as they are.

    What a host contributes is encoded once, by whoever combines it there. A member alone on its host encodes
    without the lock, slice by slice, each sent while the next is encoded. Slices of other hosts are decoded
    as they come in.
    """

    def __init__(
        self,
        driver: Driver,
        participant: Participant,
        exchange: Exchange,
        memory: Memory | None,
        changed: Condition,
        encoding: Encoding,
    ) -> None:
        super().__init__(driver, participant, exchange, memory, changed)
        self._coding = Coding(encoding, driver.layout, max(driver.trailing, 1))

    def join(self, view: View) -> None:
        super().join(view)
        hosts, rank = self._participant.hosts, self._participant.rank
        encoded = range(view.size) if self._is_alone else hosts.combines(rank)
        if len(hosts.hosts) > 1:
            segments = range(len(self._driver.layout.segments))
            self._coding.join([self._bounds(segment, s) for segment in segments for s in encoded])

    def problem(self, segment: int) -> str:
        a, b = self._driver.layout.segments[segment]
        return self._coding.problem(self._driver.contribution[a:b])

    def commit(self, base: int, ranks: Iterable[int], *, own: bool) -> None:
        view, ranks = self._participant.view, set(ranks)
        made = Made(-1 if view is None else view.number, base, subset_of(ranks))
        self._coding.commit(made, counted=not ranks.isdisjoint(self._beside) and not own)

    def forget(self) -> None:
        self._coding.forget()

    @property
    def _beside(self) -> tuple[int, ...]:
        """The ranks on this host."""
        return self._participant.hosts.beside(self._participant.rank) if self._participant.rank >= 0 else ()

    @property
    def _is_alone(self) -> bool:
        return len(self._beside) == 1

    @property
    def _hosts(self) -> int:
        return len(self._participant.hosts.hosts)

    # --- what goes out -----------------------------------------------------------------------------

    def promise(self, action: moves.Action) -> Work | None:
        if isinstance(action, moves.SendContribution):
            return action if self._is_alone else None
        return super().promise(action)

    def work(self, action: Work) -> moves.Combined | None:
        if isinstance(action, moves.Combine):
            return super().work(action)
        with self._one_at_a_time[action.segment]:
            for slice_, rank in action.to:
                self._contribute(action, slice_, rank)
        return None

    def _contribute(self, action: moves.SendContribution, slice_: int, rank: int) -> None:
        with self._changed:
            if not self._is_current(action):
                return
            a, b = self._bounds(action.segment, slice_)
            made = Made(action.view, action.base, subset_of((self._participant.rank,)))
        contribution = self._driver.contribution[a:b]
        content = self._coding.contribution(action.segment, slice_, made, contribution, a)
        with self._changed:
            if self._is_current(action):
                self._send_contribution(action, slice_, rank, made.subset, (content.data, DType.BYTES))

    def _is_current(self, action: moves.SendContribution) -> bool:
        """The round is under way here; under the lock."""
        view, version = self._participant.view, self._participant.version
        return view is not None and (view.number, version.number) == (action.view, action.base)

    def _send_gathered(self, action: moves.SendGathered) -> None:
        made = Made(action.view, action.base, action.subset)
        content = self._coding.contributed(action.segment, action.slice, made)
        if content is not None:
            self._send_contribution(
                action, action.slice, action.slice, action.subset, (content.data, DType.BYTES)
            )

    def _send_combined(self, action: moves.SendCombined, ranks: tuple[int, ...]) -> None:
        beside = set(self._beside)
        super()._send_combined(action, tuple(rank for rank in ranks if rank in beside))
        made = Made(action.view, action.base, action.subset)
        content = self._coding.combined(action.segment, made)
        if content is not None and action.slice == self._participant.rank:
            header = self._combined_header(action, DType.BYTES)
            self._send([rank for rank in ranks if rank not in beside], header, content.data)

    # --- means -------------------------------------------------------------------------------------

    def _reduce(self, action: moves.Combine, out: Array, inputs: list[Input]) -> None:
        if self._hosts == 1:
            super()._reduce(action, out, inputs)
            return
        made = Made(action.view, action.base, action.subset)
        segment, slice_ = action.segment, action.slice
        a, _ = self._bounds(segment, slice_)
        if slice_ != self._participant.rank:
            super()._reduce(action, out, inputs)
            self._coding.gathered(segment, slice_, made, out, a)
            return
        here: list[Term] = []
        there: list[Term] = []
        for rank, weight, (array, _) in zip(action.ranks, action.weights, inputs, strict=True):
            (here if rank in self._beside else there).append((rank, weight, array))
        arrays, weights = [array for _, _, array in there], [weight for _, weight, _ in there]
        if here:
            arrays.append(self._of_own_host(action, here, a))
            weights.append(sum(weight for _, weight, _ in here))
        result = np.empty_like(out)
        mean(result, arrays, weights)
        self._coding.combine(segment, made, self._hosts, result, out, a)

    def _of_own_host(self, action: moves.Combine, here: list[Term], a: int) -> Array:
        """What members on this host contribute to the own slice, as others would have decoded it."""
        segment, slice_ = action.segment, action.slice
        made = Made(action.view, action.base, subset_of(rank for rank, _, _ in here))
        arrays = [array for _, _, array in here]
        decoded = np.empty_like(arrays[0])
        if self._is_alone:
            content = self._coding.contribution(segment, slice_, made, arrays[0], a)
        else:
            mean(decoded, arrays, [weight for _, weight, _ in here])
            content = self._coding.gathered(segment, slice_, made, decoded, a)
        self._coding.decode(content, decoded, self._hosts, combined=False)
        return decoded

    # --- what comes in -----------------------------------------------------------------------------

    def place(self, peer: str, header: Header, loan: Loan | None = None) -> memoryview | None:
        if header.dtype is not DType.BYTES:
            return super().place(peer, header, loan)
        with self._changed:
            self._changed.wait_for(lambda: self._placeable(header), self._exchange.deadlines.stall)
            where, hosts = self._where(peer, header), self._hosts
        if where is None or header.kind is Kind.WHOLE:
            return None
        expected = self._coding.nbytes(len(where), hosts, combined=header.kind is Kind.COMBINED)
        if header.length != expected:
            raise WireError(f"length: {header.length} bytes, expected {expected} for this slice, encoded")
        return memoryview(bytearray(expected))

    def take_in(self, peer: str, header: Header, payload: memoryview) -> bool:
        if header.dtype is not DType.BYTES:
            return super().take_in(peer, header, payload)
        with self._changed:
            where, hosts = self._where(peer, header), self._hosts
        if where is None:
            return False
        combined = header.kind is Kind.COMBINED
        if combined:
            self.clean(header.view, header.base)
        else:
            self._take_in(peer, header, where, None)
        self._coding.decode(np.frombuffer(payload, np.uint8), where, hosts, combined=combined)
        return super().take_in(peer, header, payload)
