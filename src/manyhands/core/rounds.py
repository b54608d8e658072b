"""One member's part in the transaction that turns contributions into the next version.

`Participant` is told what happened and answers with what to do; it never waits, sends or computes.
A round goes: ready (segments of the own contribution are final) → propose → every reducer combines
its slices → staged → commit. A forced view change aborts it, and it runs again in the next view with
the same contributions; a member that lags one version behind rolls forward; any other heals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from manyhands.core.hosts import Hosts, Input
from manyhands.core.messages import (
    START,
    Contribution,
    Entered,
    Freeze,
    Opened,
    Proposed,
    Recovered,
    Staged,
    Version,
    View,
    Want,
)
from manyhands.core.moves import (
    Action,
    Arrived,
    Combine,
    Combined,
    Commit,
    Event,
    Heal,
    Heard,
    Installed,
    Join,
    Out,
    Overdue,
    Propose,
    Ready,
    Refill,
    Replaced,
    Report,
    SendCombined,
    SendContribution,
    SendGathered,
    SendWhole,
    Stand,
    Tell,
)
from manyhands.errors import ProtocolError


class Verdict(Enum):
    """What to do with a message of a view and a base version."""

    ACCEPT = "accept"
    LATER = "later"
    DROP = "drop"


@dataclass
class Round:
    """All that is known of the round on the current version, in the current view.

    Slices go by (segment, slice). What arrived of one is weight and subset by rank of the sender; `reduced`
    is the subset over which it is being, or has been, combined here, and `gathered` those combined here for
    their reducers; `staged` is the subset of a combined one.
    """

    sent: set[int] = field(default_factory=set)
    told: bool = False
    wanted: bool = False
    proposals: dict[int, Contribution] = field(default_factory=dict)
    arrived: dict[tuple[int, int], dict[int, tuple[float, int]]] = field(default_factory=dict)
    reduced: dict[tuple[int, int], int] = field(default_factory=dict)
    gathered: dict[tuple[int, int], SendGathered] = field(default_factory=dict)
    staged: dict[tuple[int, int], int] = field(default_factory=dict)
    tally: dict[int, int] = field(default_factory=dict)

    def stage(self, segment: int, slice_: int, subset: int) -> bool:
        """Note it; False where that was known."""
        old = self.staged.get((segment, slice_))
        if old == subset:
            return False
        if old is not None:
            self.tally[old] -= 1
        self.staged[segment, slice_] = subset
        self.tally[subset] = self.tally.get(subset, 0) + 1
        return True


class Participant:
    """The part of one incarnation in all rounds over one shared vector of `segments` segments.

    `shares_buffer`: the contribution is overwritten by the combined slices (and can be written again).
    `seat` is the rank in which the version was adopted, which no other member had.
    """

    HISTORY = 40

    def __init__(self, incarnation: str, segments: int, *, shares_buffer: bool = False) -> None:
        self.incarnation = incarnation
        self.segments = segments
        self.shares_buffer = shares_buffer
        self.phase: Literal["outside", "healing", "rolling", "member"] = "outside"
        self.view: View | None = None
        self.hosts = Hosts(())
        self.rank = -1
        self.seat = -1
        self.version = START
        self.fence = 0
        self.frozen = False
        self.stops_at: int | None = None
        self.opening: Opened | None = None
        self.heals_at = -1
        self.target: Version | None = None
        self.recovered: Recovered | None = None
        self.last: Recovered | None = None
        self.ready: dict[int, float] = {}
        self.proposal: Contribution | None = None
        self.refilling = self.spoilt = False
        self.round = Round()
        self.reached: dict[int, int] = {}
        self._history: deque[Event] = deque(maxlen=self.HISTORY)

    # --- questions ---------------------------------------------------------------------------------

    @property
    def peers(self) -> tuple[str, ...]:
        return tuple(self.view.members[rank].incarnation for rank in self.others) if self.view else ()

    @property
    def others(self) -> tuple[int, ...]:
        """The other members' ranks, the next one first: each begins with another one."""
        size = self.view.size if self.view else 0
        return tuple((self.rank + distance) % size for distance in range(1, size))

    @property
    def settled(self) -> bool:
        """Every member is known to hold the current version."""
        if self.view is None or self.phase != "member":
            return False
        return all(self.reached.get(rank, -1) >= self.version.number for rank in self.others)

    @property
    def called(self) -> bool:
        """Some other member has begun the round, and waits for this one."""
        if self.view is None or self.phase != "member" or self.rank in self.round.proposals:
            return False
        arrived = self.round.arrived.values()
        return (
            self.round.wanted
            or bool(self.round.proposals)
            or any(rank != self.rank for ranks in arrived for rank in ranks)
        )

    @property
    def hurry(self) -> bool:
        """What others learned waits for this member alone, or for one of them who is about to leave."""
        proposals = self.round.proposals.values()
        last = len(proposals) == len(self.others) and any(c.weight > 0 for c in proposals)
        return self.called and (last or any(c.leaving for c in proposals))

    @property
    def replays(self) -> bool:
        """This member has what one that lags by a version needs to roll forward."""
        return self.last is not None and self.last.version == self.version

    @property
    def begun(self) -> bool:
        """Something of the current round has left this member."""
        return bool(self.round.sent) or self.round.told

    def missing(self) -> tuple[str, ...]:
        """Names of the members whose part of this round has not come."""
        if self.view is None:
            return ()
        return tuple(
            self.view.members[rank].name
            for rank in self.others
            if rank not in self.round.proposals
            or (self.round.proposals[rank].weight > 0 and (0, rank) not in self.round.staged)
        )

    def verdict(self, view: int, base: int, kind: str = "message") -> Verdict:
        """Whether a message of this view and base is for now, for later, or for nobody."""
        current = self.view.number if self.view else -1
        if view < self.fence or view < current:
            return Verdict.DROP
        if self.frozen or view > current or self.phase in ("outside", "healing"):
            return Verdict.LATER
        if kind == "message":
            return Verdict.ACCEPT
        if kind == "whole":
            wanted = self.phase == "rolling" and base == self.version.number
            return Verdict.ACCEPT if wanted else Verdict.DROP
        if self.phase == "rolling" or base > self.version.number:
            return Verdict.LATER
        return Verdict.DROP if base < self.version.number else Verdict.ACCEPT

    # --- events ------------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Action]:
        """What to do about an event; raises ProtocolError, with the history, where it cannot happen."""
        if not isinstance(event, Overdue | Arrived):
            self._history.append(event)
        match event:
            case Ready(segment, weight):
                self.ready[segment] = weight
                if len(self.ready) == self.segments:
                    self.refilling = False
                return self._advance()
            case Propose(contribution):
                if self.proposal is not None:
                    raise self._fault("proposed twice in one round")
                self.proposal = contribution
                return self._advance()
            case Arrived():
                return self._arrived(event)
            case Combined():
                return self._combined(event)
            case Heard(sender, message):
                return self._heard(sender, message)
            case Freeze():
                return self._freeze(event)
            case Opened():
                return self._opened(event)
            case Installed(version):
                return self._installed(version)
            case Out(why):
                self._leave()
                return [Replaced(why)]
            case Overdue():
                return self._overdue()
        raise self._fault(f"unknown event {event!r}")

    def _advance(self) -> list[Action]:
        """Do whatever the state now allows: open a waiting view, send, tell, commit."""
        actions: list[Action] = []
        # Not before all hold the view's last version: who lacks a slice of it can only ask in that view.
        passed = self.settled or self.view is None or self.version.view != self.view.number
        if (
            self.opening is not None
            and self.phase == "member"
            and passed
            and self.version.number == self.opening.at
        ):
            opened, self.opening, self.stops_at = self.opening, None, None
            actions += self._enter(opened.view)
        if (
            self.view is None
            or self.phase != "member"
            or self.frozen
            or self.refilling
            or (self.stops_at is not None and self.version.number >= self.stops_at)
        ):
            return actions
        round_, view, base = self.round, self.view.number, self.version.number
        rejected = self.proposal is not None and self.proposal.weight == 0
        if not rejected:
            for segment, weight in self.ready.items():
                if segment in round_.sent:
                    continue
                round_.sent.add(segment)
                if gives := self.hosts.gives(self.rank):
                    actions.append(SendContribution(view, base, segment, weight, gives))
                for slice_ in self.hosts.combines(self.rank):
                    arrived = round_.arrived.setdefault((segment, slice_), {})
                    arrived[self.rank] = weight, subset_of((self.rank,))
                    actions += self._reduce(segment, slice_)
        if self.proposal is not None and not round_.told:
            round_.told = True
            if self.peers:
                actions.append(Tell(self.peers, Proposed(view, base, self.proposal)))
            actions += self._proposed(self.rank, self.proposal)
        return actions

    def _proposed(self, rank: int, contribution: Contribution) -> list[Action]:
        self.round.proposals[rank] = contribution
        actions: list[Action] = []
        if contribution.weight == 0:
            for segment, slice_ in list(self.round.arrived):
                actions += self._reduce(segment, slice_)
        return actions + self._stage()

    def _arrived(self, event: Arrived) -> list[Action]:
        if self.verdict(event.view, event.base, event.kind) is not Verdict.ACCEPT:
            return []
        assert self.view is not None
        rank = self.view.rank(event.sender)
        if rank is None or not 0 <= event.segment < self.segments:
            return []
        if event.kind == "whole":
            self.spoilt = True
            self.round.stage(event.segment, 0, 0)
            return self._roll()
        segment, slice_ = event.segment, event.slice
        self.reached[rank] = max(self.reached.get(rank, -1), event.base)
        if event.kind == "contribution":
            if slice_ not in self.hosts.combines(self.rank):
                return []
            self.round.arrived.setdefault((segment, slice_), {})[rank] = event.weight, event.subset
            return self._reduce(segment, slice_)
        if not 0 <= slice_ < self.view.size or not self.round.stage(segment, slice_, event.subset):
            return []
        return [*self._pass_on(segment, slice_), *self._stage()]

    def _pass_on(self, segment: int, slice_: int) -> list[Action]:
        """A slice is combined, or has come so: send it to whom this member gives it."""
        assert self.view is not None
        subset = self.round.staged[segment, slice_]
        if not (takers := self.hosts.takers(self.rank, slice_)):
            return []
        return [SendCombined(self.view.number, self.version.number, segment, slice_, subset, takers)]

    def _reduce(self, segment: int, slice_: int) -> list[Action]:
        """Combine a slice when all that it is made of is here, or known not to come."""
        assert self.view is not None
        arrived = self.round.arrived.get((segment, slice_), {})
        ranks: list[int] = []
        counted: list[int] = []
        for rank, live in self._inputs(slice_):
            if rank not in arrived or arrived[rank][1] != subset_of(live):
                return []
            ranks.append(rank)
            counted += live
        subset = subset_of(counted)
        if not ranks or self.view.size == 1 or self.round.reduced.get((segment, slice_)) == subset:
            return []
        self.round.reduced[segment, slice_] = subset
        self.round.gathered.pop((segment, slice_), None)
        weights = tuple(arrived[rank][0] for rank in ranks)
        view, base = self.view.number, self.version.number
        return [Combine(view, base, segment, slice_, tuple(ranks), weights, subset)]

    def _inputs(self, slice_: int) -> list[Input]:
        """Of what a slice is combined here, without who is known to contribute nothing."""
        proposals = self.round.proposals
        silent = {rank for rank, proposal in proposals.items() if proposal.weight == 0}
        inputs = (
            Input(rank, tuple(r for r in ranks if r not in silent))
            for rank, ranks in self.hosts.inputs(self.rank, slice_)
        )
        return [it for it in inputs if it.ranks]

    def _combined(self, event: Combined) -> list[Action]:
        place = segment, slice_ = event.segment, event.slice
        if (
            self.verdict(event.view, event.base, "combined") is not Verdict.ACCEPT
            or self.round.reduced.get(place) != event.subset
        ):
            return []
        if slice_ == self.rank:
            self.round.stage(segment, slice_, event.subset)
            return [*self._pass_on(segment, slice_), *self._stage()]
        weight = sum(self.round.arrived[place][rank][0] for rank, _ in self._inputs(slice_))
        sent = SendGathered(event.view, event.base, segment, slice_, weight, event.subset)
        self.round.gathered[place] = sent
        return [sent]

    def _stage(self) -> list[Action]:
        """Commit when every proposal is known and every slice is combined over exactly the right set."""
        assert self.view is not None
        round_, size = self.round, self.view.size
        if len(round_.proposals) < size or not round_.told:
            return []
        counted = [rank for rank in range(size) if round_.proposals[rank].weight > 0]
        if counted and size > 1 and round_.tally.get(subset_of(counted), 0) < self.segments * size:
            return []
        contributions = tuple(round_.proposals[rank] for rank in range(size))
        version = Version(self.version.number + 1, self.view.number)
        return self._commit(version, contributions, own=size == 1)

    def _commit(
        self, version: Version, contributions: tuple[Contribution, ...], *, own: bool
    ) -> list[Action]:
        assert self.view is not None
        weight = sum(c.weight for c in contributions)
        self.last = Recovered(self.view.number, self.version.number, version, contributions)
        self.version, self.seat = version, self.rank
        self.ready, self.proposal, self.round, self.spoilt = {}, None, Round(), False
        self.phase, self.target, self.recovered = "member", None, None
        actions: list[Action] = [Commit(version, contributions, weight, own and weight > 0)]
        if self.peers:
            actions.append(Tell(self.peers, Staged(self.view.number, version.number)))
        return actions + self._advance()

    def _heard(self, sender: str, message: Proposed | Staged | Want | Recovered) -> list[Action]:
        if self.verdict(message.view, 0) is not Verdict.ACCEPT:
            late = isinstance(message, Want) and message.kind == "staged" and self.phase == "member"
            known = self.view is not None and self.view.rank(sender) is not None
            return [Tell((sender,), Staged(message.view, self.version.number))] if late and known else []
        assert self.view is not None
        rank = self.view.rank(sender)
        if rank is None:
            return []
        match message:
            case Proposed(view, base, contribution):
                if self.verdict(view, base, "proposed") is not Verdict.ACCEPT:
                    return []
                self.reached[rank] = max(self.reached.get(rank, -1), base)
                return self._proposed(rank, contribution)
            case Staged(_, number):
                self.reached[rank] = max(self.reached.get(rank, -1), number)
                return self._advance() if self.opening is not None else []
            case Want():
                return self._wanted(sender, rank, message)
            case Recovered(_, base, version, _):
                if self.phase == "rolling" and base == self.version.number and version == self.target:
                    self.recovered = message
                    return self._roll()
                return []

    def _wanted(self, sender: str, rank: int, want: Want) -> list[Action]:
        assert self.view is not None
        view, base = want.view, want.base
        now = base == self.version.number and self.phase == "member"
        before = self.last if self.last is not None and self.last.base == base else None
        segments = [s for s in range(self.segments) if not want.segments or s in want.segments]
        match want.kind:
            case "contribution" if now:
                gathered = [
                    self.round.gathered[s, rank] for s in segments if (s, rank) in self.round.gathered
                ]
                gives = tuple(pair for pair in self.hosts.gives(self.rank) if pair[1] == rank)
                if not gives or (self.proposal and self.proposal.weight == 0):
                    return [*gathered]
                return [
                    *gathered,
                    *(
                        SendContribution(view, base, s, self.ready[s], gives)
                        for s in segments
                        if s in self.round.sent and s in self.ready
                    ),
                ]
            case "proposed" if now and self.round.told and self.proposal:
                return [Tell((sender,), Proposed(view, base, self.proposal))]
            case "proposed" if now:
                self.round.wanted = True
            case "proposed" if before and self.phase == "member" and before.view == view:
                return [Tell((sender,), Proposed(view, base, before.contributions[self.rank]))]
            case "combined" if now and len(self.round.proposals) == self.view.size:
                return [
                    SendCombined(view, base, s, slice_, self.round.staged[s, slice_], (rank,))
                    for s in segments
                    for slice_ in self._given_to(rank)
                    if (s, slice_) in self.round.staged
                ]
            case "combined" if before and self.phase == "member" and before.view == view:
                counted = subset_of(r for r, c in enumerate(before.contributions) if c.weight > 0)
                return [
                    SendCombined(view, base, s, slice_, counted, (rank,))
                    for s in segments
                    for slice_ in self._given_to(rank)
                ]
            case "staged" if self.phase == "member":
                return [Tell((sender,), Staged(view, self.version.number))]
            case "whole" if before and self.phase == "member":
                weight = sum(c.weight for c in before.contributions)
                news = Recovered(view, base, before.version, before.contributions)
                return [
                    Tell((sender,), news),
                    *(SendWhole(view, base, s, sender) for s in segments if weight > 0),
                ]
        return []

    def _given_to(self, rank: int) -> list[int]:
        """The combined slices that another member gets from this one."""
        assert self.view is not None
        return [s for s in range(self.view.size) if s != rank and self.hosts.source(rank, s) == self.rank]

    # --- views -------------------------------------------------------------------------------------

    def _freeze(self, freeze: Freeze) -> list[Action]:
        if freeze.view < self.fence or (self.view is not None and freeze.view <= self.view.number):
            return []
        if freeze.planned:
            if self.opening is not None:
                raise self._fault(f"view {freeze.view} is planned before {self.opening.view.number} began")
            self.stops_at = self.version.number + (1 if self.begun else 0)
        else:
            self.opening = None
            self.fence, self.frozen, self.stops_at = freeze.view, True, self.version.number
        return [Stand(freeze.view)]

    def _opened(self, opened: Opened) -> list[Action]:
        number = opened.view.number
        if number < self.fence or (self.view is not None and number <= self.view.number):
            return []
        if opened.view.rank(self.incarnation) is None:
            self._leave()
            return [Replaced(opened.why)]
        self.opening = None
        if self.phase in ("outside", "healing"):
            restore = opened.restore if self.incarnation in opened.sources else ""
            if self.incarnation in opened.sources and not restore:  # the first view begins with this state
                self.phase = "member"
                return self._enter(opened.view)
            self.phase, self.heals_at = "healing", opened.at
            return [*self._enter(opened.view), Heal(opened.view, opened.at, opened.sources, restore)]
        if opened.version is None:
            if opened.at < self.version.number:
                raise self._fault(f"view {number} opens at {opened.at}, before version {self.version}")
            self.opening, self.stops_at = opened, opened.at
            return self._advance()
        if opened.version == self.version:
            self.phase, self.target, self.recovered = "member", None, None
            return self._enter(opened.view)
        if opened.version.number == self.version.number + 1 and self.proposal is not None and opened.replays:
            self.phase, self.target, self.recovered = "rolling", opened.version, None
            actions = self._enter(opened.view)
            want = Want(number, self.version.number, "whole")
            return [*actions, Tell(opened.replays[:1], want)]
        self.ready, self.proposal = {}, None
        self.phase, self.heals_at = "healing", opened.at
        return [
            *self._enter(opened.view),
            Replaced(f"this member is at version {self.version}, the pool at {opened.version}"),
            Heal(opened.view, opened.at, opened.sources),
        ]

    def _enter(self, view: View) -> list[Action]:
        """The view takes effect: an unfinished round starts over in it."""
        rank = view.rank(self.incarnation)
        assert rank is not None
        self.spoilt = self.spoilt or self.begun
        self.view, self.rank, self.fence = view, rank, max(self.fence, view.number)
        self.hosts = Hosts([member.machine for member in view.members])
        self.frozen, self.stops_at, self.round, self.reached = False, None, Round(), {}
        actions: list[Action] = [Join(view)]
        if self.phase == "member":
            actions.append(Report(Entered(view.number, self.version)))
            if self.spoilt and self.shares_buffer and self.ready:
                self.ready, self.refilling, self.spoilt = {}, True, False
                actions.append(Refill())
            if self.peers:
                actions.append(Tell(self.peers, Staged(view.number, self.version.number)))
            actions += self._advance()
        return actions

    def _roll(self) -> list[Action]:
        recovered = self.recovered
        if recovered is None or self.target is None or self.view is None:
            return []
        if any(c.weight > 0 for c in recovered.contributions) and len(self.round.staged) < self.segments:
            return []
        entered = Report(Entered(self.view.number, self.target))
        return [entered, *self._commit(self.target, recovered.contributions, own=False)]

    def _installed(self, version: Version) -> list[Action]:
        if self.phase != "healing" or self.view is None or version.number != self.heals_at:
            return []
        if self.frozen:  # the hub has heard that this one does not hold it, and goes by that
            return []
        self.phase, self.version, self.last, self.seat = "member", version, None, self.rank
        self.ready, self.proposal, self.refilling, self.spoilt = {}, None, False, False
        return [
            Report(Entered(self.view.number, version)),
            Tell(self.peers, Staged(self.view.number, version.number)),
            *self._advance(),
        ]

    def _leave(self) -> None:
        self.phase, self.view, self.rank = "outside", None, -1
        self.frozen, self.stops_at, self.opening, self.target, self.recovered = False, None, None, None, None
        self.ready, self.proposal, self.round = {}, None, Round()
        self.refilling = self.spoilt = False

    def _overdue(self) -> list[Action]:
        if self.view is None or self.frozen:
            return []
        view, base = self.view.number, self.version.number
        if self.phase == "rolling" and self.target is not None:
            return [Tell(self.peers, Want(view, base, "whole"))]
        if self.phase != "member":
            return []
        actions: list[Action] = []
        uncombined, unstaged = self._uncombined(), self._unstaged()
        for rank in self.others:
            to = (self.view.members[rank].incarnation,)
            if self.reached.get(rank, -1) < base:
                actions.append(Tell(to, Want(view, base, "staged")))
            if not self.round.told:
                continue
            if rank not in self.round.proposals:
                actions.append(Tell(to, Want(view, base, "proposed")))
            elif rank in uncombined:
                actions.append(Tell(to, Want(view, base, "contribution", tuple(sorted(uncombined[rank])))))
            if rank in unstaged:
                actions.append(Tell(to, Want(view, base, "combined", tuple(sorted(unstaged[rank])))))
        return actions

    def _uncombined(self) -> dict[int, set[int]]:
        """By rank, the segments of which its slices lack for what is combined here."""
        lacking: dict[int, set[int]] = {}
        for slice_ in self.hosts.combines(self.rank):
            for rank, live in self._inputs(slice_):
                for segment in range(self.segments):
                    here = self.round.arrived.get((segment, slice_), {}).get(rank)
                    if here is None or here[1] != subset_of(live):
                        lacking.setdefault(rank, set()).add(segment)
        return lacking

    def _unstaged(self) -> dict[int, set[int]]:
        """By rank, the segments of which combined slices lack that come from it, once all have proposed."""
        assert self.view is not None
        counted = subset_of(r for r, c in self.round.proposals.items() if c.weight > 0)
        lacking: dict[int, set[int]] = {}
        if counted and len(self.round.proposals) == self.view.size:
            for slice_ in self.others:
                for segment in range(self.segments):
                    if self.round.staged.get((segment, slice_)) != counted:
                        lacking.setdefault(self.hosts.source(self.rank, slice_), set()).add(segment)
        return lacking

    def _fault(self, what: str) -> ProtocolError:
        story = "\n  ".join(repr(event)[:300] for event in self._history)
        return ProtocolError(
            f"{self.incarnation} at version {self.version}, phase {self.phase}: {what}\n"
            f"what came before:\n  {story}"
        )


def subset_of(ranks: Iterable[int]) -> int:
    """A set of ranks as one number of 64 bits: exact up to 63 members, a remainder beyond."""
    mask = 0
    for rank in ranks:
        mask |= 1 << rank
    return mask % 0xFFFFFFFFFFFFFFC5
