"""Whose script hangs: it has been in one step for far longer than any that a script has come back from."""

from __future__ import annotations

from manyhands.core.membership import Membership, WorkerStatus


def hung(membership: Membership) -> tuple[WorkerStatus, str] | None:
    """The member that has been in one step for too long, and why it is not waited for; None if there is none.

    A script that hangs cannot be told from one in a long step. So nobody goes before what any member allows
    itself, which follows the longest step that it came back from; and nobody while no other member that
    holds the newest version is at work: where all evaluate, say, the first that is back speaks for the rest.
    """
    members = membership.survivors()
    limit = max((worker.beat.allowed for worker in members), default=0.0)
    away = [worker for worker in members if worker.beat.step > limit]
    newest = max((worker.applied for worker in members), default=0)
    others = (w for w in members if w.state == "member" and w.connected and w.applied == newest)
    if not away or all(worker in away for worker in others):
        return None
    worst = max(away, key=lambda worker: worker.beat.step)
    return worst, (
        f"its script has been in one step for {worst.beat.step:.0f} s, where {limit:.0f} s are the most that "
        "a member allows itself (--patience stretches it): the others go on without it, and it takes up "
        "their state if it comes back"
    )
