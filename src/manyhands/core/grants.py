"""Who is given data, and when; what scripts have failed at comes last, and to whom it can be risked."""

from __future__ import annotations

from collections.abc import Iterable

from manyhands.core.decisions import Action, Note, Send
from manyhands.core.ledger import Ledger
from manyhands.core.membership import Membership, WorkerStatus
from manyhands.core.messages import Asked, Leased, Span

BATCHES_BEFORE = 4
"""Which have gone well since a worker's start, at least, where it is the next one's fault that it fails."""


class Grants:
    """What members have asked for, until it can be answered, and when a script has failed last."""

    def __init__(self, ledger: Ledger, membership: Membership) -> None:
        self._ledger, self._membership = ledger, membership
        self._asked: dict[tuple[str, int], Asked] = {}
        self._failed_at = 0.0

    def restarted(self, now: float) -> None:
        """A script may have failed just before."""
        self._failed_at = now

    def ask(self, worker: WorkerStatus, asked: Asked) -> None:
        """Of each data set the last that a worker has asked for counts."""
        worker.pace = asked.pace
        self._asked[worker.incarnation, asked.dataset] = asked

    def forget(self, incarnation: str) -> None:
        """It is gone, and wants nothing any more."""
        self._asked = {key: asked for key, asked in self._asked.items() if key[0] != incarnation}

    def answer(self, now: float, *, safe: bool, patience: float) -> list[Action]:
        """Lease to whoever asked, as far as it can be decided now.

        `safe`: nothing would be lost with all who hold the state. Where it is not, the only one that does
        is given no suspects, and others have `patience` seconds to join before these are quarantined.
        """
        view, actions = self._membership.view, list[Action]()
        if view is None:
            return actions
        for (incarnation, dataset), asked in list(self._asked.items()):
            rank = view.rank(incarnation)
            if rank is None or dataset not in self._ledger.datasets:
                continue
            if asked.epoch > self._ledger.epoch(dataset):
                continue
            del self._asked[incarnation, dataset]
            part = self._membership.part_of_pace(incarnation)
            spans = self._ledger.grant(incarnation, asked, rank=rank, size=view.size, part=part)
            if not spans:
                worker, waited = self._membership.workers[incarnation], now - self._failed_at
                spans, said = self._try_again(worker, asked, waited, safe=safe, patience=patience)
                actions += said
            skipped = self._ledger.skip(incarnation, dataset, asked.epoch)
            actions.append(Send(incarnation, Leased(dataset, asked.epoch, spans, skipped)))
        return actions

    def failed(self, worker: WorkerStatus, batch: tuple[Span, ...], why: str, now: float) -> list[Action]:
        """A script has raised while it was at this batch: is it the batch?"""
        batch = self._ledger.leased_batch(worker.incarnation, batch)
        times = self._ledger.failed(worker.name, batch, why)
        if not times:
            return []
        self._failed_at = now
        samples = sum(map(len, batch))
        kind = "suspect" if worker.read >= (BATCHES_BEFORE + 1) * samples else "batch-failed"
        if times > 1 and not self._ledger.all_fails(batch[0].dataset, batch[0].epoch):
            kind = "bad-data"
        what = f"{samples} sample{'s' * (samples > 1)} of data set {batch[0].dataset}"
        again = f", at some of which {times} starts of workers have failed" if times > 1 else ""
        note = Note(kind, worker.name, f"worker {worker.name} failed at {what}{again}: {why}")
        proven = self._ledger.proven(batch)
        return [note, *self._quarantine(proven, f"{times} starts of workers failed there")]

    def _try_again(
        self, worker: WorkerStatus, asked: Asked, waited: float, *, safe: bool, patience: float
    ) -> tuple[tuple[Span, ...], list[Action]]:
        """Lease what others have failed at, when nothing else is left of an epoch.

        First to who has not failed at it. Not to the only one that holds the state: another start would
        cost all that was learned.
        """
        ledger = self._ledger
        suspect = ledger.suspect(worker.incarnation, asked.dataset, asked.epoch)
        if not suspect:
            return (), []
        others = [w for w in self._membership.survivors() if w is not worker and w.connected]
        holders = [w for w in others if w.state == "member" and not ledger.at_risk(w.incarnation)]
        if not holders and any(ledger.at_risk(w.incarnation) for w in others):
            return (), []  # one at a time where there are two
        if not holders and not safe and not ledger.all_fails(asked.dataset, asked.epoch):
            if waited < patience:
                return (), []
            alone = f"a worker failed there, and {worker.name} alone holds the model, which is not risked"
            return (), self._quarantine(suspect, alone)
        fresh = ledger.unfailed(worker.name, suspect)
        lease = self._membership.lease
        if not fresh and waited < lease and any(ledger.unfailed(w.name, suspect) for w in others):
            return (), []
        return ledger.try_again(worker.incarnation, fresh or suspect), []

    def _quarantine(self, spans: Iterable[Span], because: str) -> list[Action]:
        return [
            Note("quarantined", "", f"{found} counts no more: {because}; the last time {found.why}")
            for found in self._ledger.bar(spans)
        ]
