"""Which version counts: the newest that members have made, as far as all before it are known."""

from __future__ import annotations

from collections.abc import Iterable

from manyhands.core.decisions import Action, Journal, Note, Send, Undone, VersionRecord
from manyhands.core.digests import Digests
from manyhands.core.ledger import Ledger
from manyhands.core.membership import GONE, Membership, WorkerStatus
from manyhands.core.messages import START, Acknowledged, Applied, Standing, Version


class Versions:
    """`newest` is the version that counts. `over`: with it all is learned, or members end."""

    def __init__(self, ledger: Ledger, membership: Membership) -> None:
        self._ledger, self._membership = ledger, membership
        self.newest = START
        self.over = False
        self.digests = Digests()
        self._ahead: dict[int, Applied] = {}
        self._acknowledged = 0

    def applied(
        self, worker: WorkerStatus, applied: Applied, *, adopts: bool
    ) -> tuple[list[Action], dict[str, str]]:
        """A member holds a version: what follows; and whose bits differ, and how.

        `adopts`: it counts, once all before it do.
        """
        version = applied.version
        worker.applied = max(worker.applied, version.number)
        if version.number >= self.newest.number:
            self.over = applied.last
        actions: list[Action] = []
        if adopts and applied.contributions is not None and version.number > self.newest.number:
            self._ahead[version.number] = applied
            while following := self._ahead.pop(self.newest.number + 1, None):
                actions += self._adopt(following)
        if not applied.digest:
            return actions, {}
        members = tuple(member.incarnation for member in self._membership.members())
        return actions, self.digests.report(version, worker.incarnation, applied.digest, members)

    def _adopt(self, applied: Applied) -> list[Action]:
        """The next version counts."""
        version, contributions = applied.version, applied.contributions or ()
        ended = self._ledger.commit(version, contributions)
        self.newest = version
        partitioned = bool(self._ledger.datasets)
        record = VersionRecord(version, applied.digest, contributions, len(contributions), partitioned)
        actions: list[Action] = [Journal(record)]
        for dataset, epoch, skipped in ended:
            if skipped:
                text = f"epoch {epoch} of data set {dataset} has ended without what is quarantined: {skipped}"
                actions.append(Note("epoch", "", text))
        for contribution in contributions:
            if (contributor := self._membership.workers.get(contribution.incarnation)) is not None:
                contributor.read = max(contributor.read, contribution.read)
            if contribution.rejected:
                name = self._membership.name(contribution.incarnation)
                text = f"worker {name} was left out of version {version}: {contribution.rejected}"
                actions.append(Note("rejected", name, text))
        return actions

    def settle(self) -> None:
        """What every member of the view holds is final."""
        held = min((member.applied for member in self._membership.members()), default=0)
        if held > 0:
            self._ledger.settle(held)

    def untold(self, workers: Iterable[WorkerStatus]) -> str:
        """Why to ask all where they stand; "" where nobody who has told all it can holds a later version.

        There were too many to keep, or a disk has not kept what it said it had.
        """
        if max((worker.applied for worker in workers), default=0) <= self.newest.number:
            return ""
        return f"no member can tell any more of what the versions after {self.newest} are made"

    def acknowledge(self) -> list[Action]:
        """Tell the members of what is in the journal, where that is news."""
        if self.newest.number <= self._acknowledged or self._membership.view is None:
            return []
        self._acknowledged = self.newest.number
        return [
            Send(member.incarnation, Acknowledged(self._acknowledged))
            for member in self._membership.members()
            if member.state == "member"
        ]

    def acknowledge_again(self, incarnation: str, version: Version) -> list[Action]:
        """Who says again what the hub knows has not heard that it does."""
        known = version.number <= self._acknowledged
        return [Send(incarnation, Acknowledged(self._acknowledged))] if known else []

    def can_go_on(self, version: Version) -> bool:
        """What was committed by then is known: it is the newest, or those after it can be undone."""
        return version == self.newest or (version < self.newest and self._ledger.knows(self.newest))

    def go_on(self, version: Version, standings: dict[str, Standing], why: str) -> list[Action]:
        """Those who live go on with this one, and hold what they say: `why` is why later ones are undone."""
        actions: list[Action] = []
        for undone in self._ledger.tentative(version.number):
            self._ledger.undo(undone, standings)
            note = Note("rolled-back", "", f"version {undone} is undone: {why}")
            actions += [Journal(Undone(undone, why)), note]
        self.newest, self._ahead = version, {}
        self._acknowledged = min(self._acknowledged, version.number)
        for who, standing in standings.items():
            self._ledger.hold(who, standing.held)
        for worker in self._membership.workers.values():
            if worker.state in GONE:
                self._ledger.release(worker.incarnation)
        return actions

    def go_back(self, version: Version) -> None:
        """To that of a checkpoint: those after it leave the history."""
        self.newest, self._ahead, self._acknowledged = version, {}, version.number
        self.digests.forget(version.number)
