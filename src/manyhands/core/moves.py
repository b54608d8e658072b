"""What happens to a member, and what it is to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from manyhands.core.messages import (
    Contribution,
    Entered,
    Freeze,
    Opened,
    Proposed,
    Recovered,
    Staged,
    ToPeer,
    Version,
    View,
    Want,
)

# --- what happened ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """A segment of the own contribution is final; `weight` is the same for all segments of a round."""

    segment: int
    weight: float


@dataclass(frozen=True)
class Propose:
    """The own contribution is complete."""

    contribution: Contribution


@dataclass(frozen=True)
class Arrived:
    """A slice came in and is where it belongs; `subset`: the ranks of whose contributions it is made."""

    kind: Literal["contribution", "combined", "whole"]
    sender: str
    view: int
    base: int
    segment: int
    slice: int = 0
    weight: float = 0.0
    subset: int = 0


@dataclass(frozen=True)
class Combined:
    """A slice of a segment has been combined, as `Combine` said."""

    view: int
    base: int
    segment: int
    slice: int
    subset: int


@dataclass(frozen=True)
class Heard:
    """A message of another member."""

    sender: str
    message: Proposed | Staged | Want | Recovered


@dataclass(frozen=True)
class Installed:
    """The state of a version, fetched from a source, is in place."""

    version: Version


@dataclass(frozen=True)
class Out:
    """The hub says that this incarnation is no member any more."""

    why: str


@dataclass(frozen=True)
class Overdue:
    """Nothing has come for a while: ask again for what is missing."""


Event = Ready | Propose | Arrived | Combined | Heard | Installed | Out | Overdue | Freeze | Opened

# --- what to do ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SendContribution:
    """Send slices of this segment of the own contribution: (slice, rank it goes to) for each of `to`."""

    view: int
    base: int
    segment: int
    weight: float
    to: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Combine:
    """Combine a slice of this segment of what exactly these ranks have sent, in this order.

    It stands for the contributions of `subset` then. The own slice is combined for all, any other for its
    reducer, who combines it with those of other hosts.
    """

    view: int
    base: int
    segment: int
    slice: int
    ranks: tuple[int, ...]
    weights: tuple[float, ...]
    subset: int


@dataclass(frozen=True)
class SendGathered:
    """Send a slice of this segment, as it is combined of the contributions on this host, to its reducer."""

    view: int
    base: int
    segment: int
    slice: int
    weight: float
    subset: int


@dataclass(frozen=True)
class SendCombined:
    """Send a combined slice of this segment: the own one, or one to be passed on."""

    view: int
    base: int
    segment: int
    slice: int
    subset: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class SendWhole:
    """Send a whole segment of the combined vector of the current version to a member rolling forward."""

    view: int
    base: int
    segment: int
    to: str


@dataclass(frozen=True)
class Tell:
    """Send a message to members."""

    to: tuple[str, ...]
    message: ToPeer


@dataclass(frozen=True)
class Commit:
    """The combined vector is complete: adopt it. `own`: it is the own contribution, unchanged."""

    version: Version
    contributions: tuple[Contribution, ...]
    weight: float
    own: bool


@dataclass(frozen=True)
class Stand:
    """Report to the hub where this member stands, answering its `Freeze` of that view."""

    view: int


@dataclass(frozen=True)
class Join:
    """A view takes effect: these are the members now."""

    view: View


@dataclass(frozen=True)
class Heal:
    """Fetch the state of version number `at` from one of the sources, or from the checkpoint to `restore`."""

    view: View
    at: int
    sources: tuple[str, ...]
    restore: str = ""


@dataclass(frozen=True)
class Refill:
    """An aborted round may have overwritten the own contribution: write it again, and say ready again."""


@dataclass(frozen=True)
class Report:
    """Tell the hub."""

    message: Entered


@dataclass(frozen=True)
class Replaced:
    """What this worker has does not count any more."""

    why: str


Action = (
    SendContribution
    | Combine
    | SendGathered
    | SendCombined
    | SendWhole
    | Tell
    | Commit
    | Stand
    | Join
    | Heal
    | Refill
    | Report
    | Replaced
)
