"""Who combines what for whom where members share a host: what they contribute is combined there first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Input(NamedTuple):
    """What a slice is combined of: a message of `sender`, for all of `ranks`."""

    sender: int
    ranks: tuple[int, ...]


class Hosts:
    """The ranks of a view by host, from each member's machine; "" is a machine of its own.

    Rank s combines slice s of every segment: it is the reducer of that slice. On each other host one
    member, the gatherer of the slice, combines what the members there contribute to it, sends that
    to the reducer, and passes on there what the slice has been combined to. So one stream of slices
    crosses the line of a host, however many members it has. A member alone on its host has nothing to gather.
    """

    def __init__(self, machines: Sequence[str]) -> None:
        found: dict[str, list[int]] = {}
        for rank, machine in enumerate(machines):
            found.setdefault(machine or f"of rank {rank}", []).append(rank)
        self.hosts = tuple(map(tuple, found.values()))
        self._host = {rank: number for number, ranks in enumerate(self.hosts) for rank in ranks}
        self._gatherers = [self._shared_out(set(ranks), len(machines)) for ranks in self.hosts]

    @staticmethod
    def _shared_out(ranks: set[int], size: int) -> tuple[int, ...]:
        """For each slice who gathers it on this host: its reducer, or each member in turn."""
        turns, foreign = sorted(ranks), 0
        gatherers = []
        for slice_ in range(size):
            gatherers.append(slice_ if slice_ in ranks else turns[foreign % len(turns)])
            foreign += slice_ not in ranks
        return tuple(gatherers)

    def beside(self, rank: int) -> tuple[int, ...]:
        """All ranks on the host of this one, itself among them."""
        return self.hosts[self._host[rank]]

    def gatherer(self, rank: int, slice_: int) -> int:
        """Who gathers a slice on the host of `rank`."""
        return self._gatherers[self._host[rank]][slice_]

    def combines(self, rank: int) -> tuple[int, ...]:
        """The slices that `rank` combines: its own, and those that it gathers for others."""
        alone = len(self.beside(rank)) == 1
        gatherers = self._gatherers[self._host[rank]]
        return (rank,) if alone else tuple(s for s, gatherer in enumerate(gatherers) if gatherer == rank)

    def inputs(self, rank: int, slice_: int) -> tuple[Input, ...]:
        """Of what `rank` combines one of the slices that it `combines`, in order of the sender's rank."""
        inputs = [Input(r, (r,)) for r in self.beside(rank)]
        if slice_ == rank:
            inputs += [
                Input(self.gatherer(ranks[0], slice_), ranks) for ranks in self.hosts if rank not in ranks
            ]
        return tuple(sorted(inputs))

    def gives(self, rank: int) -> tuple[tuple[int, int], ...]:
        """(slice, to): to whom each slice of the contribution of `rank` goes, but for those it combines.

        Each member begins with another slice.
        """
        alone = len(self.beside(rank)) == 1
        slices = self._after(rank, range(len(self._host)))
        pairs = ((s, s if alone else self.gatherer(rank, s)) for s in slices)
        return tuple((s, to) for s, to in pairs if to != rank)

    def takers(self, rank: int, slice_: int) -> tuple[int, ...]:
        """To whom `rank` passes the combined slice: nobody, unless it is its reducer or gathers it.

        Each member begins with another one.
        """
        if self.gatherer(rank, slice_) != rank:
            return ()
        beside = [r for r in self.beside(rank) if r != rank]
        if slice_ == rank:
            beside += [self.gatherer(ranks[0], slice_) for ranks in self.hosts if rank not in ranks]
        return tuple(self._after(rank, beside))

    def _after(self, rank: int, ranks: Iterable[int]) -> list[int]:
        """In order, those after this one first."""
        return sorted(ranks, key=lambda it: (it - rank - 1) % len(self._host))

    def source(self, rank: int, slice_: int) -> int:
        """From whom `rank` gets the combined slice of another."""
        gatherer = self.gatherer(rank, slice_)
        return slice_ if gatherer == rank else gatherer
