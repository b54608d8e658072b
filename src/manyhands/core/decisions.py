"""What the hub is told, and what it answers with."""

from __future__ import annotations

from dataclasses import dataclass

from manyhands.core.messages import (
    Acknowledged,
    Contribution,
    Finished,
    Followed,
    Freeze,
    Hello,
    Leased,
    Opened,
    ToHub,
    ToWorker,
    Version,
    View,
)

# --- what happened ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connected:
    """A control connection opened with this Hello."""

    hello: Hello


@dataclass(frozen=True)
class Received:
    """A worker said something."""

    incarnation: str
    message: ToHub


@dataclass(frozen=True)
class Disconnected:
    """A control connection broke."""

    incarnation: str


@dataclass(frozen=True)
class Compared:
    """A worker of another hub says which one it follows."""

    followed: Followed


@dataclass(frozen=True)
class Stopped:
    """Somebody ends the run."""

    why: str


@dataclass(frozen=True)
class Ticked:
    """Time went by."""


Event = Connected | Received | Disconnected | Compared | Stopped | Ticked

# --- what to do ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VersionRecord:
    """A version was adopted. `partitioned`: samples are those read of data sets; else each weight counts."""

    version: Version
    digest: str
    contributions: tuple[Contribution, ...]
    view_size: int
    partitioned: bool = False


@dataclass(frozen=True)
class ViewRecord:
    """A view was opened at a version."""

    view: View
    at: int
    why: str


@dataclass(frozen=True)
class Undone:
    """A version that only the dead held leaves the history."""

    version: Version
    why: str


@dataclass(frozen=True)
class Restored:
    """The run goes on from a checkpoint of this version: later ones leave the history."""

    version: Version
    why: str


@dataclass(frozen=True)
class Journal:
    """Remember, before anything that follows is said."""

    record: VersionRecord | ViewRecord | Undone | Restored


@dataclass(frozen=True)
class Send:
    incarnation: str
    message: ToWorker


@dataclass(frozen=True)
class Close:
    """End this worker's connection."""

    incarnation: str
    why: str


@dataclass(frozen=True)
class Note:
    """A line for people."""

    kind: str
    who: str
    text: str


@dataclass(frozen=True)
class End:
    """The run is over."""

    ok: bool
    why: str


Action = Journal | Send | Close | Note | End


def lasts(message: object) -> bool:
    """Once a worker hears this the hub must not forget it, also where its machine loses its power.

    All else workers tell a hub whose journal has lost its end.
    """
    skips = isinstance(message, Leased) and bool(message.skipped)
    return skips or isinstance(message, Acknowledged | Freeze | Opened | Finished)
