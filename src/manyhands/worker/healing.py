"""The state of the pool on its way from a member that has it to one that does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from manyhands.core.messages import SnapshotWanted, ToHub, Unreadable, Version, encode
from manyhands.core.moves import Heal
from manyhands.core.rounds import Participant
from manyhands.errors import Damaged, RunLost
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import Header, Kind
from manyhands.sharing import tree
from manyhands.worker.driving import Driver
from manyhands.worker.packing import packed
from manyhands.worker.progress import Progress
from manyhands.worker.saving import before, restored
from manyhands.worker.waiting import Waiting

log = logging.getLogger("manyhands.worker")

SNAPSHOT_SECONDS = 20.0
"""Silence after which the state is asked for again; while bytes come in, there is no limit."""

ATTEMPTS = 15
READ_SECONDS = 600.0
"""For a checkpoint, from wherever it is."""


class Donor:
    """Gives the state to whoever asks for it. All under the lock, but for the packing."""

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

    def asked(self, peer: str, wanted: SnapshotWanted) -> None:
        """A peer wants the state of a version, which this member may not have yet."""
        self._asked[peer] = wanted

    @property
    def pending(self) -> bool:
        """A peer waits for the state of just this version."""
        participant = self._participant
        if participant.phase != "member" or participant.view is None:
            return False
        here = participant.view.number, participant.version.number
        return any((wanted.view, wanted.at) == here for wanted in self._asked.values())

    def give(self) -> None:
        """On the script's thread, where the driver holds the participant's version."""
        participant = self._participant
        if not self._asked or participant.phase != "member" or participant.view is None:
            return
        view, number = participant.view.number, participant.version.number
        header = Header(Kind.SNAPSHOT, view, number)
        later, now = dict[str, SnapshotWanted](), list[str]()
        for peer, wanted in self._asked.items():
            if wanted.view > view or wanted.at > number:
                later[peer] = wanted
            elif (wanted.view, wanted.at) == (view, number) and not self._exchange.carries(peer, header):
                now.append(peer)
        self._asked = later
        if now:
            state = packed(self._driver, self._progress, participant.version, self._waiting, tree.pack)
            if participant.view is not None and participant.view.number == view:
                for peer in now:
                    self._asked.pop(peer, None)  # again, while it was packed
                    self._exchange.send(peer, header, state)


class Patient:
    """Fetches the state. `heal` is what to fetch and from whom, None while there is nothing to fetch."""

    def __init__(
        self,
        driver: Driver,
        progress: Progress,
        exchange: Exchange,
        waiting: Waiting,
        report: Callable[[ToHub], None],
    ) -> None:
        self._report = report
        self.heal: Heal | None = None
        self._packed: memoryview | None = None
        self._driver, self._progress = driver, progress
        self._exchange, self._waiting = exchange, waiting

    def prescribe(self, heal: Heal | None) -> None:
        """Whatever was to be fetched before is of no use any more; under the lock."""
        self.heal, self._packed = heal, None

    def place(self, peer: str, header: Header) -> memoryview | None:
        """Where a state goes that a source sends; under the lock."""
        heal = self.heal
        if heal is None or self._packed is not None:
            return None
        if heal.view.number != header.view or peer not in heal.sources:
            return None
        return memoryview(bytearray(header.length))

    def arrived(self, header: Header, packed: memoryview) -> None:
        """A state is complete, and its checksum right; under the lock."""
        if self.heal is not None and self.heal.view.number == header.view:
            self._packed = packed

    def fetch(self, heal: Heal) -> Version | None:
        """Ask one source after the other, and install what comes: on the script's thread.

        None when something else, or nothing, is to be fetched meanwhile. Raises RunLost when no source
        gives it, and CheckpointError for a checkpoint that cannot be read. Of a damaged one the hub is told,
        and which one there is before it.
        """
        waiting = self._waiting
        if heal.restore:
            return self._restore(heal)
        wanted = SnapshotWanted(heal.view.number, heal.at)
        for source in heal.sources * ATTEMPTS:
            self._exchange.send(source, Header(Kind.MESSAGE, wanted.view), encode(wanted))
            self._wait_for_silence(heal)
            with waiting.changed:
                if self.heal is not heal:
                    return None
                packed = self._packed
            if packed is None:
                log.warning("worker %s got no state from %s; asking again", waiting.name, source)
                continue
            return self._install(tree.unpack(packed))
        raise RunLost("no member gave this worker the state of the pool; see the log of the hub")

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
        return self._install(state)

    def _install(self, state: Any) -> Version:
        self._driver.install(state["driver"])
        with self._waiting.changed:
            self._progress.install(state)
        return Version(*state["version"])

    def _wait_for_silence(self, heal: Heal) -> None:
        """Until a state is here, another is wanted, or nothing at all comes in any more."""
        waiting, before = self._waiting, -1
        while (carried := self._exchange.received_bulk_bytes) != before:
            before = carried
            if waiting.wait(
                lambda: self._packed is not None or self.heal is not heal,
                SNAPSHOT_SECONDS * waiting.patience,
            ):
                return
