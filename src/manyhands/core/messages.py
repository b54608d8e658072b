"""What workers, hub and peers say to each other: frozen, typed, encoded with msgpack.

Past tense is news (an event), imperative is an order. Every message that crosses a process
boundary is a `msgspec.Struct` of this module; nothing is ever unpickled.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

Amount = Annotated[float, msgspec.Meta(ge=0, le=1e18)]
"""Samples, or bytes a second: a number, not negative, and nothing that adds up to an infinity."""

Whole = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
"""A count, or the number of something: not negative, and sums of a few fit into the 64 bits of a snapshot."""


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The root of all control messages; the tag on the wire is the class's name."""


class Version(msgspec.Struct, frozen=True, order=True):
    """A version's name: its number and the view that committed it. `Version(0, 0)` is the start."""

    number: Whole
    view: Whole

    def __str__(self) -> str:
        return f"{self.number}·{self.view}"


START = Version(0, 0)


class Member(msgspec.Struct, frozen=True, omit_defaults=True):
    """One incarnation in a view. Its rank is its place in `View.members`.

    `host` and `port` are the address of its exchange. Members of the same `machine` read each other's
    memory; "" is nobody else's.
    """

    incarnation: str
    name: str
    host: str
    port: int
    machine: str = ""


class View(msgspec.Struct, frozen=True, omit_defaults=True):
    """A numbered membership; the order of the members is the order in which slices are summed.

    `shares`: how large the slices of each rank are beside those of the others; () for equal ones.
    """

    number: Whole
    members: tuple[Member, ...]
    shares: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return len(self.members)

    def rank(self, incarnation: str) -> int | None:
        for rank, member in enumerate(self.members):
            if member.incarnation == incarnation:
                return rank
        return None


class Span(msgspec.Struct, frozen=True, order=True):
    """Positions [start, stop) of one pass (epoch) over one data set, in shuffled order."""

    dataset: Whole
    epoch: Whole
    start: Whole
    stop: Whole

    def __len__(self) -> int:
        return self.stop - self.start


class Contribution(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one member puts into a round, beside the slices: its weight (samples) and what it read.

    `source` is the data set that was learned from, whose samples the weight counts; None for data of the
    script's own. `leaving`: this member goes after this version, and others are not to delay it. `late`: its
    script was in a step when the deadline passed, and gives what it learned with the next one. `metrics`
    are (sum·weight, weight) pairs by name; `rejected` says why the contribution was left out (not a number,
    say): its weight is then zero and its spans are not committed. `present` is a bit per shared tensor: which
    had a gradient at all. `read` is what `Beat` calls so, as of now: of a worker that is killed, no beat may
    tell of the last it read. `skipped` are quarantined samples: they are settled with this version, and
    nothing was learned from them.
    """

    incarnation: str
    weight: Amount
    spans: tuple[Span, ...] = ()
    metrics: dict[str, tuple[float, float]] = {}
    rejected: str = ""
    present: bytes = b""
    read: Whole = 0
    source: int | None = None
    leaving: bool = False
    late: bool = False
    skipped: tuple[Span, ...] = ()


class SavedHolding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a joiner must know of a data set: the epoch and what of it is committed, in positions.

    `quarantined` are samples, by their own indices, and `skipped` how often one has been left out: at most
    once an epoch.
    """

    dataset: Whole
    epoch: Whole
    committed: tuple[tuple[Whole, Whole], ...]
    quarantined: tuple[tuple[Whole, Whole], ...] = ()
    skipped: Whole = 0


class Kept(msgspec.Struct, frozen=True):
    """A checkpoint: where it is, of which version, and what of the data that version has committed."""

    url: str
    version: Version
    holdings: tuple[SavedHolding, ...]


class Tensor(msgspec.Struct, frozen=True):
    """Name, shape and dtype of one shared tensor; all workers must agree on the list of them."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Dataset(msgspec.Struct, frozen=True):
    """How a script partitions one data set; all workers must agree on it."""

    index: Whole
    length: int
    batch_size: int
    epochs: int
    order: str
    seed: int | None


# --- worker to hub -------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """The first message on a control connection, at the start and after every reconnect.

    `epoch` is that of the newest hub this worker has heard: an older one has no say any more.
    """

    run: str
    incarnation: str
    name: str
    pid: int
    host: str
    port: int
    software: str
    standing: Standing | None = None
    datasets: tuple[Dataset, ...] = ()
    ready: Ready | None = None
    machine: str = ""
    epoch: Whole = 0


class Followed(Message, frozen=True):
    """The one message on a connection to another hub: this worker follows one of that epoch."""

    run: str
    incarnation: str
    name: str
    epoch: Whole


class Declared(Message, frozen=True):
    """The script partitions this data set."""

    dataset: Dataset


class Ready(Message, frozen=True):
    """The script shares a model: this incarnation wants to be a member.

    `learned`: as another incarnation it has held a version, so a run cannot begin with its state.
    """

    tensors: tuple[Tensor, ...]
    strategy: str
    learned: bool = False


class Standing(Message, frozen=True):
    """Where a member stands: the answer to `Freeze`, and part of a reconnecting `Hello`.

    `stops_at` is the first version number on which this member begins no round before it hears
    of the next view. `held` are leased and uncommitted spans, read or not.
    `unacknowledged` are the versions the hub has not acknowledged yet, oldest first. `replays`: this
    member can give what one that lags by a version needs to roll forward; one that just healed cannot.
    `holdings` say which samples `version` has committed, to a hub without a journal.
    """

    view: Whole
    version: Version
    stops_at: Whole
    held: tuple[Span, ...] = ()
    unacknowledged: tuple[Applied, ...] = ()
    member_of: View | None = None
    healed: bool = True
    replays: bool = False
    holdings: tuple[SavedHolding, ...] = ()


class Applied(Message, frozen=True):
    """This member adopted a version. Rank 0 of the view says what it is made of.

    `last`: with it a condition is met upon which all members end.
    """

    version: Version
    digest: str
    contributions: tuple[Contribution, ...] | None = None
    last: bool = False


class Entered(Message, frozen=True):
    """This worker takes part in a view, with the state of a version of the pool's own."""

    view: Whole
    version: Version


class Asked(Message, frozen=True):
    """A worker wants to lease about so many samples of an epoch.

    It has so many `queued` already, and reads at a `pace` of so many samples/s; 0 while that is not known.
    """

    dataset: Whole
    epoch: Whole
    samples: Whole
    queued: Whole = 0
    pace: Amount = 0.0


class Suspected(Message, frozen=True):
    """A member cannot reach another; the hub decides."""

    peer: str
    why: str


class Beat(Message, frozen=True):
    """Alive. The counters are totals since the start of the incarnation; bytes and samples.

    `unreachable`: incarnations of members to which there is no connection just now. `neighbours`: how many
    members read slices in this one's memory; None while it is not known, or there are no members. `line`: at
    how many bytes/s this one sends to other hosts when it sends; 0 while that is not known. `streams`: the
    most connections that it has opened to one member. `step`: for how many seconds the script has been in its
    step; `allowed`: how many may be before it hangs, by the longest that it came back from.
    """

    sent: Whole = 0
    received: Whole = 0
    read: Whole = 0
    waiting_for: str = ""
    unreachable: tuple[str, ...] = ()
    neighbours: Whole | None = None
    line: Amount = 0.0
    streams: Whole = 1
    step: Amount = 0.0
    allowed: Amount = 0.0


class Saved(Message, frozen=True):
    """The answer to `Save`: what was kept, in so many seconds; or the error that it came to."""

    serial: Whole
    kept: Kept | None = None
    bytes: Whole = 0
    seconds: Amount = 0.0
    error: str = ""


class Unreadable(Message, frozen=True):
    """The checkpoint from which this worker was to take the state is damaged; `instead` is the one before."""

    url: str
    why: str
    instead: Kept | None = None


FINISHED = "it has finished"


class Left(Message, frozen=True):
    """An orderly goodbye.

    `finished`: the script came to its end, it did not give up. `told`: it was ended from outside, by
    SIGTERM or Ctrl-C. `batch` is what the script was at when it raised.
    """

    finished: bool
    why: str
    told: bool = False
    batch: tuple[Span, ...] = ()


# --- hub to worker -------------------------------------------------------------------------------


class Welcome(Message, frozen=True):
    """The hub takes this incarnation; `expected` workers start together, this one as `place`.

    `epoch` is greater than that of every hub before this one; 0 of one that waits to take over, which has no
    say yet.
    """

    run: str
    place: int
    expected: int
    lease: float
    resumed: bool
    epoch: int = 0


class Serving(Message, frozen=True):
    """The answer to `Followed`: this hub's own epoch, or 0 where it has nobody to offer a place."""

    epoch: int


class Refuse(Message, frozen=True):
    """The hub will not have this worker. `kind` names the error that the worker raises, or is `STRANGER`."""

    kind: str
    why: str


STRANGER = "Stranger"
"""To a worker with a token that this hub does not know: it may serve another run than the hub before it."""


class Freeze(Message, frozen=True):
    """A view change begins. Forced: take no slice of an older view any more. Planned: finish the round."""

    view: int
    planned: bool
    why: str


class Opened(Message, frozen=True):
    """The next view takes effect at version number `at`; who lacks it fetches it from `sources`.

    Who lags by one version rolls forward with the help of one of `replays`, or heals if there is none.

    `version` is the full name where the hub knows it (always when the change was forced). `restore`: the
    URL of the checkpoint from which the sources take the state, in a first view that does not begin with
    theirs.
    """

    view: View
    at: int
    sources: tuple[str, ...]
    why: str
    version: Version | None = None
    replays: tuple[str, ...] = ()
    restore: str = ""


class Leased(Message, frozen=True):
    """Spans for this worker alone; empty when none is free just now.

    `skipped` are quarantined: they go into its next contribution, and nobody reads them.
    """

    dataset: int
    epoch: int
    spans: tuple[Span, ...]
    skipped: tuple[Span, ...] = ()


class Acknowledged(Message, frozen=True):
    """Every version up to this number is in the journal."""

    number: int


class Save(Message, frozen=True):
    """Keep the state of the next version boundary under this URL, and the newest `keep` checkpoints there.

    Only those of the same `line` count, which is this run's alone. `wrong` are the numbers of attempts by who
    turned out to hold other bits: what came of them is to be removed.
    """

    serial: int
    url: str
    keep: int
    line: str = ""
    wrong: tuple[int, ...] = ()


class Evicted(Message, frozen=True):
    """This incarnation is no member any more: whatever it holds does not count."""

    why: str


class Finished(Message, frozen=True):
    """The run is over; there is nothing left to join. `ok`: nothing that was learned is lost."""

    why: str
    ok: bool = True


ToHub = (
    Hello
    | Followed
    | Declared
    | Ready
    | Standing
    | Applied
    | Entered
    | Asked
    | Suspected
    | Beat
    | Saved
    | Unreadable
    | Left
)
ToWorker = Welcome | Refuse | Freeze | Opened | Leased | Acknowledged | Save | Evicted | Finished


# --- between members (the slices themselves travel as raw buffers, see exchange.wire) --------------


class Proposed(Message, frozen=True):
    """My contribution to the round on `base` is complete."""

    view: int
    base: int
    contribution: Contribution


class Staged(Message, frozen=True):
    """I hold every combined slice of this version."""

    view: int
    number: int


class Want(Message, frozen=True):
    """Something of the round on `base` has not come: send it again.

    `kind`: "contribution" (your slices for me), "combined" (your combined slices), "proposed",
    "staged", or "whole" (all of the combined vector of the version after `base`, segment by segment).
    """

    view: int
    base: int
    kind: str
    segments: tuple[int, ...] = ()


class Recovered(Message, frozen=True):
    """The contributions of the version after `base`, for a member that rolls forward."""

    view: int
    base: int
    version: Version
    contributions: tuple[Contribution, ...]


class SnapshotWanted(Message, frozen=True):
    """A joiner asks a source which parts the state of version number `at` has there."""

    view: int
    at: int


class Offered(Message, frozen=True):
    """This source has a copy of the state of `version`, cut as `sharing.parts.Cut` says."""

    view: int
    version: Version
    length: int
    arrays: int
    digests: bytes


class PartsWanted(Message, frozen=True):
    """A joiner asks for parts, by number, of the copy that was offered of version number `at`."""

    view: int
    at: int
    parts: tuple[int, ...]


Healing = SnapshotWanted | Offered | PartsWanted
ToPeer = Proposed | Staged | Want | Recovered | Healing

_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    "hub": msgspec.msgpack.Decoder(ToHub),
    "worker": msgspec.msgpack.Decoder(ToWorker),
    "other": msgspec.msgpack.Decoder(Serving),
    "peer": msgspec.msgpack.Decoder(ToPeer),
}
encode = msgspec.msgpack.Encoder().encode


def decode_for_hub(data: bytes) -> ToHub:
    """Raises `msgspec.DecodeError` for anything that is not a message a worker sends to the hub."""
    return _decoders["hub"].decode(data)  # type: ignore[no-any-return]


def decode_for_worker(data: bytes) -> ToWorker:
    """Raises `msgspec.DecodeError` for anything that is not a message the hub sends to a worker."""
    return _decoders["worker"].decode(data)  # type: ignore[no-any-return]


def decode_answer(data: bytes) -> Serving:
    """Raises `msgspec.DecodeError` for anything that is not a hub's answer to `Followed`."""
    return _decoders["other"].decode(data)  # type: ignore[no-any-return]


def decode_for_peer(data: bytes | memoryview) -> ToPeer:
    """Raises `msgspec.DecodeError` for anything that is not a message between members."""
    return _decoders["peer"].decode(data)  # type: ignore[no-any-return]
