"""When the committed state is kept, and by whom: one member at a time, another where it fails or is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from manyhands.core.decisions import Action, Note, Send
from manyhands.core.membership import Membership, WorkerStatus
from manyhands.core.messages import Kept, Save, Saved, Version

LONGEST_SECONDS = 600.0
"""After which another member is asked."""

RETRY_SECONDS = 10.0
"""From a failure until another member is asked."""


@dataclass(frozen=True)
class Plan:
    """Keep the state under `url` whenever so many `versions` or `seconds` have passed; 0: not by that.

    And when all has been learned. The last `keep` checkpoints stay.
    """

    url: str
    versions: int = 0
    seconds: float = 0.0
    keep: int = 3


class SavedCheckpoints(msgspec.Struct, frozen=True):
    """What a restarted hub must know."""

    serial: int = 0
    last: Kept | None = None
    by: str = ""
    before: Kept | None = None
    number: int = 0
    wrong: tuple[int, ...] = ()


class Checkpoints:
    """Follows a plan, if there is one. `last` is the newest checkpoint, or the one the run began with."""

    def __init__(self, plan: Plan | None = None, saved: SavedCheckpoints = SavedCheckpoints()) -> None:  # noqa: B008
        self.plan = plan
        self.last = saved.last
        self._serial = saved.serial
        self._by, self._before = saved.by, saved.before
        self._number, self._wrong = saved.number, saved.wrong
        self._asked: tuple[str, int, float] | None = None  # who, which attempt, and when
        self._since: float | None = None
        self._failures = 0
        self._not_before = 0.0

    def save(self) -> SavedCheckpoints:
        return SavedCheckpoints(self._serial, self.last, self._by, self._before, self._number, self._wrong)

    def keep(
        self, now: float, version: Version, membership: Membership, line: str, *, over: bool
    ) -> list[Action]:
        """Have a member keep the state, where that is due."""
        members = [w.incarnation for w in membership.members() if w.state == "member" and w.connected]
        actions: list[Action] = []
        if self._asked is not None and now - self._asked[2] > LONGEST_SECONDS:
            name = membership.name(self._asked[0])
            text = f"worker {name} has not kept the state in {LONGEST_SECONDS:g} s"
            actions.append(Note("checkpoint-failed", name, text))
        order = self.due(now, version, members, line, over=over)
        return [*actions, Send(*order)] if order is not None else actions

    def due(
        self, now: float, version: Version, members: Sequence[str], line: str = "", *, over: bool
    ) -> tuple[str, Save] | None:
        """Whom to ask, and for what. `members`: who holds a version, by rank; `over`: all is learned.

        `line`: what tells the checkpoints of this run, and of this hub and those before it, from others.
        """
        plan = self.plan
        self._since = now if self._since is None else self._since
        if self._asked is not None and (
            self._asked[0] not in members or now - self._asked[2] > LONGEST_SECONDS
        ):
            self._failed(now if self._asked[0] in members else 0.0)
        if plan is None or not members or self._asked is not None or now < self._not_before:
            return None
        passed = version.number - (self.last.version.number if self.last is not None else 0)
        by_versions = 0 < plan.versions <= passed
        by_time = 0 < plan.seconds <= now - self._since
        if passed <= 0 or not (by_versions or by_time or over):
            return None
        self._serial += 1
        writer = members[self._failures % len(members)]
        self._asked = writer, self._serial, now
        return writer, Save(self._serial, plan.url, plan.keep, line, self._wrong)

    def saved(self, sender: str, saved: Saved, now: float) -> bool:
        """Somebody has kept the state, or could not; False where nobody waits for that any more."""
        if self._asked is None or self._asked[:2] != (sender, saved.serial):
            return False
        if saved.error or saved.kept is None:
            self._failed(now + RETRY_SECONDS)
            return True
        self._before, self.last, self._by = self.last, saved.kept, sender
        self._number, self._wrong = saved.serial, ()
        self._since, self._asked, self._failures = now, None, 0
        return True

    def told(self, worker: WorkerStatus, saved: Saved, now: float) -> list[Action]:
        """A member has kept the state, or could not: what there is to say of that."""
        if not self.saved(worker.incarnation, saved, now):
            return []
        if saved.kept is None:
            text = f"worker {worker.name} could not keep the state: {saved.error}"
            return [Note("checkpoint-failed", worker.name, text)]
        text = (
            f"worker {worker.name} kept version {saved.kept.version} in {saved.kept.url}: "
            f"{saved.bytes / 1e6:.3g} MB in {saved.seconds:.2g} s"
        )
        return [Note("checkpoint", worker.name, text)]

    def distrust(self, incarnation: str, version: int) -> Kept | None:
        """Who kept the last one held other bits by this version, as it may have then: the one before counts.

        Bits that differ show with the next version. Returns the one that does not count any more.
        """
        if self._asked is not None and self._asked[0] == incarnation:
            self._wrong = (*self._wrong, self._asked[1])
        wrong = self.last
        if wrong is None or self._by != incarnation or version > wrong.version.number + 1:
            return None
        self.last, self._before, self._by = self._before, None, ""
        self._wrong = (*self._wrong, self._number)
        return wrong

    def fall_back(self, damaged: str) -> Kept | None:
        """The one before the last, be it of the run that this one went on from."""
        before, self._before = self._before, None
        return before if before is not None and before.url != damaged else None

    def doubt(self, worker: WorkerStatus, version: int, why: str) -> list[Action]:
        """Distrust one that held other bits by this version, and say so where a checkpoint is lost by it."""
        wrong = self.distrust(worker.incarnation, version)
        if wrong is None:
            return []
        text = f"{wrong.url} does not count: worker {worker.name} kept it, and {why}"
        return [Note("checkpoint-failed", worker.name, text)]

    def _failed(self, not_before: float) -> None:
        self._asked, self._failures, self._not_before = None, self._failures + 1, not_before
