"""From one view to the next: who is asked where it stands, and who is told to go on from where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from manyhands.core.decisions import Action, Journal, Note, Send, ViewRecord
from manyhands.core.hosts import Hosts
from manyhands.core.ledger import Ledger
from manyhands.core.membership import Membership
from manyhands.core.messages import Dataset, Freeze, Kept, Member, Opened, Standing, Version, View
from manyhands.core.shares import better, shares_of
from manyhands.core.versions import Versions

SHARES_LAST = 5
"""Versions, at least, between two changes of the shares: rates are to be measured meanwhile."""


@dataclass
class Change:
    """A view change under way: whose standing is awaited, and what has come."""

    number: int
    planned: bool
    why: str
    waiting: set[str]
    standings: dict[str, Standing] = field(default_factory=dict)

    @property
    def holders(self) -> dict[str, Standing]:
        """Of those who have answered, who holds the state of the pool."""
        return {who: standing for who, standing in self.standings.items() if standing.healed}


class Views:
    """The change under way, if there is one, and how the newest view was opened.

    `next` is the number of the view after it. A first one begins with the checkpoint to `restore`, if there
    is one.
    """

    def __init__(self, membership: Membership, ledger: Ledger, versions: Versions) -> None:
        self._membership, self._ledger, self._versions = membership, ledger, versions
        self.next = 1
        self.change: Change | None = None
        self.opened: Opened | None = None
        self.restore: Kept | None = None

    def begin(self, *, planned: bool, why: str) -> list[Action]:
        """Ask every member that lives where it stands; [] where none does."""
        members = [w.incarnation for w in self._membership.survivors()]
        self.change = change = Change(self.next, planned, why, set(members))
        self.next += 1
        return [Send(who, Freeze(change.number, planned, why)) for who in members]

    def awaits(self, incarnation: str) -> bool:
        """It has yet to say where it stands."""
        return self.change is not None and incarnation in self.change.waiting

    def catch_up(self, incarnation: str) -> list[Action]:
        """Say again what a worker may have missed while its connection was down."""
        actions: list[Action] = []
        if self.opened is not None and self.opened.view.rank(incarnation) is not None:
            actions.append(Send(incarnation, self.opened))
        if (change := self.change) is not None and incarnation in change.waiting:
            actions.append(Send(incarnation, Freeze(change.number, change.planned, change.why)))
        return actions

    def decide(self, change: Change, *, takes_over: bool) -> list[Action]:
        """All who live have said where they stand: they go on from the newest version that one holds."""
        holders = change.holders
        order = tuple(w.incarnation for w in self._membership.survivors() if w.incarnation in holders)
        if change.planned:
            return self.open(max(s.stops_at for s in holders.values()), None, order, change.why)
        best = max(s.version for s in holders.values())
        sources = tuple(who for who in order if holders[who].version == best)
        if takes_over or not self._versions.can_go_on(best):
            self._ledger.restore((), change.standings[sources[0]].holdings)
        actions = self._versions.go_on(best, change.standings, f"only {change.why} held it")
        replays = tuple(who for who in sources if holders[who].replays)
        return actions + self.open(best.number, best, sources, change.why, replays)

    def open(
        self,
        at: int,
        version: Version | None,
        sources: tuple[str, ...],
        why: str,
        replays: tuple[str, ...] = (),
    ) -> list[Action]:
        """The survivors and all who are ready are the members of a new view, and go on from a version."""
        survivors, joiners = self._membership.survivors(), self._membership.candidates()
        if joiners or self.change is None or not self.change.planned:
            self._versions.digests.forget(at)  # else nobody has healed, and what was reported counts
        number = self.change.number if self.change else self.next
        self.next, self.change = max(self.next, number + 1), None
        first, restore = self._membership.view is None, self.restore
        for worker in joiners:
            begins = first and restore is None and worker.incarnation in sources
            worker.state = "member" if begins else "healing"
        members = tuple(
            Member(w.incarnation, w.name, w.host, w.port, w.machine) for w in (*survivors, *joiners)
        )
        self._membership.view = view = View(number, members, shares_of(*self._lines(members)))
        url = restore.url if first and restore is not None else ""
        self.opened = Opened(view, at, sources, why, version, replays, url)
        names = ", ".join(m.name for m in members)
        return [
            Journal(ViewRecord(view, at, why)),
            Note("view", "", f"view {number} opens at version {at} with {names}: {why}"),
            *(Send(m.incarnation, self.opened) for m in members),
        ]

    def follow(self, number: int) -> bool:
        """Another hub has begun this one: the next is newer. Is the change under way void?"""
        void = self.change is not None and number >= self.change.number
        self.change = None if void else self.change
        self.next = max(self.next, number + 1)
        return void

    def go_back(self, kept: Kept, datasets: Iterable[Dataset] = ()) -> None:
        """The next first view begins with this checkpoint: what came after it leaves the history."""
        self._versions.go_back(kept.version)
        self.restore, self.next = kept, max(self.next, kept.version.view + 1)
        for worker in self._membership.workers.values():
            worker.applied = worker.entered = 0
        self._ledger.restore(datasets, kept.holdings)

    def close(self) -> None:
        """Nobody is left of the newest one."""
        self._membership.view = self.opened = None

    def uneven(self, version: Version) -> str:
        """Why slices are to be cut anew, to follow the lines of the members much better; "" where not."""
        view = self._membership.view
        if view is None or self.opened is None or not self._membership.entered:
            return ""
        if version.number < self.opened.at + SHARES_LAST:
            return ""
        rates, hosts = self._lines(view.members)
        if not better(view.shares, rates, hosts):
            return ""
        slowest = view.members[rates.index(min(rates))]
        return f"slices are cut to the lines: worker {slowest.name} sends {min(rates) / 1e6:.3g} MB/s"

    def _lines(self, members: tuple[Member, ...]) -> tuple[list[float], Hosts]:
        """At how many bytes/s each member sends, and who shares a host."""
        rates = [self._membership.workers[member.incarnation].beat.line for member in members]
        return rates, Hosts([member.machine for member in members])
