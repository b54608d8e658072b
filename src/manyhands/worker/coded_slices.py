"""The slices of the shared vector where a strategy encodes what leaves a host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import Condition
from typing import NamedTuple

import numpy as np

from manyhands.core import moves
from manyhands.core.hosts import Hosts
from manyhands.core.messages import Contribution, Version, View
from manyhands.core.rounds import Participant, subset_of
from manyhands.errors import WireError
from manyhands.exchange.memory import Loan, Memory
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import DType, Header, Kind
from manyhands.sharing.combine import Array, mean
from manyhands.sharing.encode.chain import Encoding
from manyhands.worker.coding import Coding, Lost, Made
from manyhands.worker.driving import Driver
from manyhands.worker.slices import Input, Slices, Work


class Term(NamedTuple):
    """Of a mean: who has sent it, what it weighs, and the values."""

    sender: int
    weight: float
    values: Array


class Encoded(NamedTuple):
    """Of what something was encoded last: view, base, and the incarnations whose host contributes it."""

    view: int
    base: int
    whose: frozenset[str]


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
        self._encoded = Encoded(-1, -1, frozenset())

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

    def commit(self, version: Version, contributions: Sequence[Contribution]) -> None:
        view, base, whose = self._encoded
        ranks = [rank for rank, c in enumerate(contributions) if c.weight > 0]
        made = Made(version.view, version.number - 1, subset_of(ranks))
        counted = any(contributions[rank].incarnation in whose for rank in ranks)
        self._coding.commit(made, counted=counted and (view, base) == (made.view, made.base))

    def forget(self) -> None:
        self._coding.forget()

    def owed(self) -> list[Array]:
        return self._coding.owed()

    def owe(self, owed: Sequence[Array]) -> None:
        self._coding.owe(owed)

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

    def _lost(self, base: int, a: int, b: int) -> Lost | None:
        """What was lost of elements [a, b), of which this host's contribution is encoded next."""
        view = self._participant.view
        assert view is not None
        whose = frozenset(view.members[rank].incarnation for rank in self._beside)
        self._encoded = Encoded(view.number, base, whose)
        return self._coding.lost(base, a, b)

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
            lost = self._lost(action.base, a, b)
        contribution = self._driver.contribution[a:b]
        content = self._coding.contribution(action.segment, slice_, made, contribution, lost)
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

    def _reduction(self, action: moves.Combine, out: Array, inputs: list[Input]) -> Callable[[], None]:
        take_mean, hosts = super()._reduction(action, out, inputs), self._participant.hosts
        if len(hosts.hosts) == 1:
            return take_mean
        a, b = self._bounds(action.segment, action.slice)
        lost = self._lost(action.base, a, b)
        if action.slice != self._participant.rank:
            return partial(self._gather, action, take_mean, out, lost)
        terms: dict[int, list[Term]] = {}
        for sender, weight, (array, _) in zip(action.ranks, action.weights, inputs, strict=True):
            terms.setdefault(hosts.beside(sender)[0], []).append(Term(sender, weight, array))
        lost_of_mean = self._coding.lost_of_means(action.base, a, b)
        return partial(self._combine_hosts, action, hosts, terms, out, lost, lost_of_mean)

    def _gather(
        self, action: moves.Combine, take_mean: Callable[[], None], out: Array, lost: Lost | None
    ) -> None:
        take_mean()
        made = Made(action.view, action.base, action.subset)
        self._coding.gathered(action.segment, action.slice, made, out, lost)

    def _combine_hosts(
        self,
        action: moves.Combine,
        hosts: Hosts,
        terms: dict[int, list[Term]],
        out: Array,
        lost: Lost | None,
        lost_of_mean: Lost | None,
    ) -> None:
        """The mean of what each host, named by its first rank, contributes to the own slice."""
        own = hosts.beside(action.slice)
        if own[0] in terms:
            terms[own[0]] = [self._as_decoded(action, hosts, terms[own[0]], lost)]
        counted = [terms[host][0] for host in sorted(terms)]
        result = np.empty_like(out)
        mean(result, [term.values for term in counted], [term.weight for term in counted])
        made = Made(action.view, action.base, action.subset)
        self._coding.combine(action.segment, made, len(hosts.hosts), result, out, lost_of_mean)

    def _as_decoded(self, action: moves.Combine, hosts: Hosts, here: list[Term], lost: Lost | None) -> Term:
        """What this host contributes to the own slice, as others would have decoded it."""
        made = Made(action.view, action.base, subset_of(term.sender for term in here))
        values, weights = [term.values for term in here], [term.weight for term in here]
        decoded = np.empty_like(values[0])
        if hosts.beside(action.slice) == (action.slice,):
            content = self._coding.contribution(action.segment, action.slice, made, values[0], lost)
        else:
            mean(decoded, values, weights)
            content = self._coding.gathered(action.segment, action.slice, made, decoded, lost)
        self._coding.decode(content, decoded, len(hosts.hosts), combined=False)
        return Term(action.slice, sum(weights), decoded)

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
        combined = header.kind is Kind.COMBINED
        with self._changed:
            where, hosts = self._where(peer, header), self._hosts
            if where is None:
                return False
            if not combined:
                self._take_in(peer, header, where, None)
        if combined:
            self.clean(header.view, header.base)
        self._coding.decode(np.frombuffer(payload, np.uint8), where, hosts, combined=combined)
        return super().take_in(peer, header, payload)
