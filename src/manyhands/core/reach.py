"""Who cannot reach whom: a cut between two members that both reach the hub is for the hub to end."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from manyhands.core.membership import Membership, WorkerStatus

CALM, MOST = 8, 16
"""Leases without a cut after which earlier ones are forgotten; the most that somebody waits for a place."""


class Reach:
    """Which members say that they cannot reach which, and since when; who has lost a place for it lately.

    Whoever has is let in again at once the first time, and after one lease, two, four and so on while the
    others cannot be reached from there still: each time costs them the time until it is known.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}
        self._out: dict[str, tuple[int, float]] = {}  # by name: how often, and until when

    def bar(self, name: str, now: float, lease: float) -> None:
        """This worker has lost its place for a cut."""
        self._out = {who: it for who, it in self._out.items() if now <= it[1] + CALM * lease}
        times = self._out.get(name, (0, 0.0))[0]
        wait = min(2 ** (times - 1), MOST) * lease if times else 0.0
        self._out[name] = times + 1, now + wait

    def barred(self, name: str) -> float:
        """Until when this worker has no place."""
        return self._out.get(name, (0, 0.0))[1]

    def report(self, who: str, unreachable: Iterable[str], now: float) -> None:
        """All that this member cannot reach at this moment."""
        pairs = {(who, peer) for peer in unreachable}
        kept = {pair: since for pair, since in self._since.items() if pair[0] != who or pair in pairs}
        self._since = dict.fromkeys(pairs, now) | kept

    def worst(
        self, members: tuple[str, ...], now: float, patience: float, keep: Collection[str] = ()
    ) -> tuple[str, list[str]] | None:
        """Who is cut off from most members (in rank order), one for longer than `patience`, and from whom.

        None while nobody is so long. In a tie the highest rank, so that of two the first one stays. Nobody
        of `keep` goes. For who goes, younger cuts count too: those of one cable are noticed one after the
        other, and the first alone does not tell whose it is.
        """
        cut: dict[str, set[str]] = {member: set() for member in members}
        overdue = set[str]()
        for (who, peer), since in self._since.items():
            if who in cut and peer in cut:
                cut[who].add(peer)
                cut[peer].add(who)
                if now - since > patience:
                    overdue |= {who, peer}
        candidates = (m for m in reversed(members) if m in overdue and m not in keep)
        worst = max(candidates, key=lambda m: len(cut[m]), default=None)
        return (worst, sorted(cut[worst])) if worst is not None else None

    def cut_off(self, membership: Membership, now: float) -> tuple[WorkerStatus, str] | None:
        """Which member goes so that a cut ends, and why; never the only holder of the newest version.

        Those who are in the view and those still in the one before refuse each other, which is no cut.
        """
        survivors = membership.survivors()
        newest = max((w.applied for w in survivors), default=0)
        holders = [w.incarnation for w in survivors if w.state == "member" and w.applied == newest]
        keep = holders if len(holders) == 1 else ()
        sides = (tuple(w.incarnation for w in side if w.connected) for side in membership.sides())
        cuts = (self.worst(side, now, membership.lease, keep) for side in sides)
        found = next((cut for cut in cuts if cut is not None), None)
        if found is None:
            return None
        who, others = found[0], ", ".join(map(membership.name, found[1]))
        why = f"it and {others} could not reach each other for {membership.lease:.0f} s"
        return membership.workers[who], f"{why}: see the network between them"
