"""The state of the pool on its way from the members that have it to one that does not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from manyhands.core.messages import (
    START,
    Healing,
    Offered,
    PartsWanted,
    SnapshotWanted,
    ToHub,
    Unreadable,
    Version,
    encode,
)
from manyhands.core.moves import Heal
from manyhands.core.rounds import Participant
from manyhands.errors import Damaged, PeerError, WireError
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import Header, Kind
from manyhands.sharing import tree
from manyhands.sharing.parts import Assembly, Cut, digest_of
from manyhands.worker.driving import Driver
from manyhands.worker.packing import packed
from manyhands.worker.progress import Progress
from manyhands.worker.saving import before, restored
from manyhands.worker.slices import Slices
from manyhands.worker.waiting import Waiting

log = logging.getLogger("manyhands.worker")

SNAPSHOT_SECONDS = 20.0
"""Silence after which the state is asked for again; while bytes come in, there is no limit."""

LOOK_SECONDS = 1.0
"""Silence after which what one source owes is asked of others too."""

ATTEMPTS = 15
READ_SECONDS = 600.0
"""For a checkpoint, from wherever it is."""

DONORS = 4
"""How many copy their state for one that heals: more would hardly be faster, and cost all of them a pause."""

OWED = 4
"""Parts asked of one source at a time: the next ones are under way while one is verified."""


@dataclass(frozen=True)
class Copy:
    """The state of a version as it was, for as long as somebody may fetch parts of it."""

    version: Version
    packed: memoryview
    cut: Cut

    @cached_property
    def parts(self) -> list[memoryview]:
        return [self.packed[start:stop] for start, stop in self.cut.bounds]


class Donor:
    """Gives the state, in parts, to whoever asks for it. All under the lock, but for the packing.

    What it gives is one copy for all who ask, in this view or in one after it, until all members hold the
    version: training goes on meanwhile.
    """

    def __init__(
        self,
        driver: Driver,
        progress: Progress,
        participant: Participant,
        exchange: Exchange,
        waiting: Waiting,
    ) -> None:
        self._driver, self._progress = driver, progress
        self._participant, self._exchange, self._waiting = participant, exchange, waiting
        self._asked: dict[str, SnapshotWanted] = {}
        self._copy: Copy | None = None

    def asked(self, peer: str, wanted: SnapshotWanted) -> None:
        """A peer wants the state of a version, which this member may not have yet."""
        self._asked[peer] = wanted
        self._release()
        if self._copy is not None and self._is_for_now(wanted):
            self._offer(peer, self._copy)

    def asked_for_parts(self, peer: str, wanted: PartsWanted) -> None:
        """A peer wants parts of what was offered; numbers that there are not, or no longer, get no answer."""
        copy, view = self._copy, self._participant.view
        if copy is None or view is None or (wanted.view, wanted.at) != (view.number, copy.version.number):
            return
        for part in wanted.parts:
            header = Header(Kind.SNAPSHOT, wanted.view, wanted.at, part)
            if 0 <= part < len(copy.parts) and not self._exchange.carries(peer, header):
                self._exchange.send(peer, header, copy.parts[part])

    @property
    def pending(self) -> bool:
        """A peer waits for the state of just this version."""
        return any(map(self._is_for_now, self._asked.values()))

    def give(self) -> None:
        """On the script's thread, where the driver holds the participant's version."""
        self._release()
        if not self._asked or self._participant.phase != "member" or self._participant.view is None:
            return
        view, number = self._participant.view.number, self._participant.version.number
        self._asked = {
            peer: wanted
            for peer, wanted in self._asked.items()
            if wanted.view > view or wanted.at > number or self._is_for_now(wanted)
        }
        if self.pending:
            try:
                copy = self._copy = self._copy or self._copied()
            except Exception as error:  # whatever cannot be copied costs those who ask, not this worker
                log.warning("worker %s cannot give its state to others: %s", self._waiting.name, error)
                self._asked = {
                    who: wanted for who, wanted in self._asked.items() if not self._is_for_now(wanted)
                }
                return
            self._release()  # others may have given it, and the version be past, by now
            if self._copy is not None:
                for peer in [peer for peer, wanted in self._asked.items() if self._is_for_now(wanted)]:
                    self._offer(peer, copy)

    def _is_for_now(self, wanted: SnapshotWanted) -> bool:
        participant = self._participant
        if participant.phase != "member" or participant.view is None:
            return False
        return (wanted.view, wanted.at) == (participant.view.number, participant.version.number)

    def _release(self) -> None:
        """A copy that nobody can want any more is let go of."""
        participant = self._participant
        if self._copy is not None and (
            participant.phase != "member" or participant.version != self._copy.version or participant.settled
        ):
            self._copy = None

    def _copied(self) -> Copy:
        version = self._participant.version

        def pack(state: tree.Tree) -> Copy:
            whole = tree.pack(state)
            return Copy(version, memoryview(whole), Cut.of(whole))

        return packed(self._driver, self._progress, version, self._waiting, pack)

    def _offer(self, peer: str, copy: Copy) -> None:
        wanted = self._asked.pop(peer)
        cut = copy.cut
        offered = Offered(wanted.view, copy.version, cut.length, cut.arrays, cut.digests)
        _say(self._exchange, peer, offered)


@dataclass
class Giver:
    """A source that has offered its copy; `owed` are the parts it was asked for, by number."""

    cut: Cut
    owed: set[int] = field(default_factory=set)

    @cached_property
    def digests(self) -> list[bytes]:
        return self.cut.parts

    @cached_property
    def lengths(self) -> list[int]:
        return [stop - start for start, stop in self.cut.bounds]

    @cached_property
    def numbers(self) -> dict[bytes, int]:
        return {digest: number for number, digest in enumerate(self.digests)}


class Patient:
    """Fetches the state. `heal` is what to fetch and from whom, None while there is nothing to fetch.

    The state is that of one source. Its parts come from all who have them with the same bits, as fast as
    each gives them; what of it is a worker's own (the state of its optimizer between two rounds, say) only
    that one has. Parts that are here stay when the one who gave them dies, and when the view changes.
    """

    def __init__(
        self,
        driver: Driver,
        progress: Progress,
        participant: Participant,
        exchange: Exchange,
        waiting: Waiting,
        report: Callable[[ToHub], None],
        slices: Slices,
    ) -> None:
        self._report, self._slices = report, slices
        self.heal: Heal | None = None
        self._driver, self._progress, self._participant = driver, progress, participant
        self._exchange, self._waiting = exchange, waiting
        self._sources: list[str] = []  # whom to ask next
        self._most = DONORS
        self._fetching = False
        self._asked: set[str] = set()
        self._asks = 0  # since the last part came
        self._doubted: set[str] = set()  # gave other bits than they had offered
        self._givers: dict[str, Giver] = {}
        self._assembly: Assembly | None = None
        self._version: Version | None = None  # of the assembly
        self._chosen = False  # it is what a source of this view has offered
        self._unasked: dict[bytes, None] = {}  # to be asked for, the rarest first

    def prescribe(self, heal: Heal | None) -> None:
        """What was to be fetched before is so no longer; parts of it may be of use. Under the lock."""
        self.heal, self._fetching, self._chosen = heal, False, False
        self._asks, self._doubted = 0, set()
        self._forget()
        if heal is not None:
            self._line_up(heal)

    def _line_up(self, heal: Heal) -> None:
        """One source on this host, where there is one: no line is as fast, and the others need no copy."""
        rank = self._participant.rank  # each that heals begins with another
        machines = {member.incarnation: member.machine for member in heal.view.members}
        own = heal.view.members[rank].machine
        near = [source for source in heal.sources if own and machines.get(source) == own]
        far = [source for source in heal.sources if source not in near]
        self._sources = [*_turned(near, rank), *_turned(far, rank)]
        self._most = 1 if near else DONORS

    def _forget(self) -> None:
        """Whatever was asked of anybody."""
        self._asked, self._givers, self._unasked = set(), {}, {}

    # --- what sources say, on the exchange's threads -----------------------------------------------

    def offered(self, peer: str, offered: Offered) -> None:
        """A source has a copy; raises WireError for one that cannot be. Under the lock."""
        of_this = (offered.view, offered.version.number) == self._wanted
        if not (self._fetching and of_this and peer in self._sources):
            return
        self._asked.add(peer)
        self._givers[peer] = Giver(Cut(offered.length, offered.arrays, offered.digests))
        self._choose(offered.version)
        self._request_all()

    def place(self, peer: str, header: Header) -> memoryview | None:
        """Where a part goes until it is verified; raises WireError where it is none. Under the lock."""
        giver = self._giver(peer, header)
        if giver is None or self._assembly is None:
            return None
        if header.segment >= len(giver.lengths) or header.length != giver.lengths[header.segment]:
            raise WireError(
                f"part {header.segment} of {header.length} bytes is not among the {len(giver.lengths)} that "
                "were offered"
            )
        if giver.digests[header.segment] not in self._assembly.lacking:  # another was asked for it too
            giver.owed.discard(header.segment)
            self._request(peer, giver)
            return None
        return np.empty(header.length, np.uint8).data

    def arrived(self, peer: str, header: Header, part: memoryview) -> None:
        """A part is complete, and its checksum right. Not under the lock."""
        digest = digest_of(part)
        with self._waiting.changed:
            giver = self._giver(peer, header)
            if giver is None or self._assembly is None:
                return
            giver.owed.discard(header.segment)
            if digest != giver.digests[header.segment]:
                log.warning(
                    "worker %s got part %d of the state from %s with other bits than were offered; it asks "
                    "the others",
                    self._waiting.name,
                    header.segment,
                    peer,
                )
                self._doubted.add(peer)
                self.lost(peer)
                return
            self._unasked.pop(digest, None)
            if digest in self._assembly.lacking:
                self._assembly.put(digest, part)
                self._asks = 0
            self._request(peer, giver)
            if self._whole:
                self._waiting.changed.notify_all()

    def lost(self, peer: str) -> None:
        """What this source was asked for will not come: others are asked. Under the lock."""
        if peer not in self._asked:
            return
        self._asked.discard(peer)
        self._sources.remove(peer)
        self._sources.append(peer)
        if self._givers.pop(peer, None) is not None and self._givers and self._version is not None:
            self._choose(self._version)
        self._enlist()
        self._request_all()

    def _giver(self, peer: str, header: Header) -> Giver | None:
        return self._givers.get(peer) if (header.view, header.base) == self._wanted else None

    @property
    def _wanted(self) -> tuple[int, int] | None:
        return None if self.heal is None else (self.heal.view.number, self.heal.at)

    @property
    def _whole(self) -> bool:
        return self._chosen and self._assembly is not None and not self._assembly.lacking

    # --- whom to ask for what, under the lock ------------------------------------------------------

    def _enlist(self) -> None:
        """Ask sources for what they have, unless enough have been asked."""
        assert self.heal is not None
        most = ATTEMPTS * len(self._sources)
        for source in [it for it in self._sources if it not in self._doubted] or self._sources:
            if len(self._asked) < self._most and source not in self._asked and self._asks < most:
                self._asks += 1
                self._asked.add(source)
                _say(self._exchange, source, SnapshotWanted(self.heal.view.number, self.heal.at))

    def _choose(self, version: Version) -> None:
        """Stay with the state that is being put together if the sources have what it lacks; else begin with
        that of the first, and what there is of it."""
        holders: dict[bytes, int] = {}
        for giver in self._givers.values():
            for digest in giver.numbers:
                holders[digest] = holders.get(digest, 0) + 1
        assembly = self._assembly
        if assembly is None or self._version != version or not assembly.lacking.keys() <= holders.keys():
            assembly = Assembly(next(iter(self._givers.values())).cut, assembly)
        self._assembly, self._version, self._chosen = assembly, version, True
        owed = {giver.digests[number] for giver in self._givers.values() for number in giver.owed}
        unasked = (digest for digest in assembly.lacking if digest not in owed)
        self._unasked = dict.fromkeys(sorted(unasked, key=lambda digest: holders[digest]))
        if self._whole:
            self._waiting.changed.notify_all()

    def _request_all(self) -> None:
        for peer, giver in self._givers.items():
            self._request(peer, giver)

    def _request_of_others(self) -> None:
        """What sources owe, the others are asked for too, each part of one of them."""
        for giver in self._givers.values():
            for part in giver.owed:
                self._unasked[giver.digests[part]] = None
        self._request_all()

    def _request(self, peer: str, giver: Giver) -> None:
        """Ask a source for the next parts."""
        assert self.heal is not None
        parts: list[int] = []
        for digest in self._unasked:
            number = giver.numbers.get(digest)
            if len(giver.owed) + len(parts) >= OWED:
                break
            if number is not None and number not in giver.owed:
                parts.append(number)
        if parts:
            giver.owed.update(parts)
            for part in parts:
                self._unasked.pop(giver.digests[part], None)
            wanted = PartsWanted(self.heal.view.number, self.heal.at, tuple(parts))
            _say(self._exchange, peer, wanted)

    # --- on the script's thread --------------------------------------------------------------------

    def fetch(self, heal: Heal) -> Version | None:
        """Ask several sources, and install what comes: on the script's thread.

        None when something else, or nothing, is to be fetched meanwhile. Raises PeerError when no source
        gives it, and CheckpointError for a checkpoint that cannot be read. Of a damaged one the hub is told,
        and which one there is before it.
        """
        if heal.restore:
            return self._restore(heal)
        for _ in range(ATTEMPTS):
            with self._waiting.changed:
                if self.heal is not heal:
                    return None
                self._fetching = True
                self._enlist()
            self._wait_for_silence(heal)
            with self._waiting.changed:
                if self.heal is not heal:
                    return None
                silent, whole = ", ".join(sorted(self._asked)), self._taken() if self._whole else None
                self._forget()
                self._sources = _turned(self._sources, self._most)
            if whole is not None:
                return self._install(tree.unpack(whole))
            log.warning("worker %s got no state from %s; asking again", self._waiting.name, silent)
        raise PeerError(
            f"no member gave worker {self._waiting.name} the state of the pool in {ATTEMPTS} times "
            f"{SNAPSHOT_SECONDS * self._waiting.patience:.0f} s: they are in one long step, or cannot be "
            "reached; it is started again"
        )

    def _restore(self, heal: Heal) -> Version | None:
        seconds = READ_SECONDS * self._waiting.patience
        try:
            state = restored(heal.restore, seconds)
        except Damaged as error:
            told = Unreadable(heal.restore, str(error), before(heal.restore, seconds))
            with self._waiting.changed:
                if self.heal is heal:
                    self.prescribe(None)
                    self._report(told)
            return None
        version = self._install(state)
        with self._waiting.changed:
            self._slices.owe(state.get("owed", ()))
        return version

    def _taken(self) -> memoryview:
        """The whole state, which nothing is written to any more: what is installed may lie in it."""
        assert self._assembly is not None
        whole, self._assembly, self._fetching = self._assembly.packed, None, False
        return whole

    def _install(self, state: Any) -> Version:
        version = Version(*state["version"])
        self._driver.install(state["driver"])
        with self._waiting.changed:
            self._progress.install(state)
            self._progress.applied |= version > START
        return version

    def _wait_for_silence(self, heal: Heal) -> None:
        """Until the state is here, another is wanted, or nothing at all has come in for long."""
        waiting, heard, before = self._waiting, time.monotonic(), -1
        while not waiting.wait(lambda: self._whole or self.heal is not heal, LOOK_SECONDS * waiting.patience):
            carried = self._exchange.received_bulk_bytes
            if carried != before:
                heard, before = time.monotonic(), carried
                continue
            with waiting.changed:
                if not self._givers:  # who is near is in a long step, perhaps
                    self._most = DONORS
                    self._enlist()
                self._request_of_others()
            if time.monotonic() - heard > SNAPSHOT_SECONDS * waiting.patience:
                return


def _turned(sources: list[str], by: int) -> list[str]:
    """The same ones in a circle, from another one on."""
    first = by % max(1, len(sources))
    return [*sources[first:], *sources[:first]]


def _say(exchange: Exchange, peer: str, message: Healing) -> None:
    exchange.send(peer, Header(Kind.MESSAGE, message.view), encode(message))
