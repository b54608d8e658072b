"""The state of the pool on its way from a member that has it to one that does not."""

from __future__ import annotations

import logging
from typing import Any

from manyhands.core.messages import SnapshotWanted, Version, encode
from manyhands.core.moves import Heal
from manyhands.core.rounds import Participant
from manyhands.errors import RunLost
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import Header, Kind
from manyhands.sharing import tree
from manyhands.worker.driving import Driver
from manyhands.worker.progress import Progress
from manyhands.worker.waiting import Waiting

log = logging.getLogger("manyhands.worker")

SNAPSHOT_SECONDS = 20.0
ATTEMPTS = 3


class Donor:
    """Gives the state to whoever asks for it. All under the lock."""

    def __init__(
        self, driver: Driver, progress: Progress, participant: Participant, exchange: Exchange
    ) -> None:
        self._driver, self._progress = driver, progress
        self._participant, self._exchange = participant, exchange
        self._asked: list[tuple[str, SnapshotWanted]] = []

    def asked(self, peer: str, wanted: SnapshotWanted) -> None:
        """A peer wants the state of a version, which this member may not have yet."""
        self._asked.append((peer, wanted))

    @property
    def pending(self) -> bool:
        """A peer waits for the state of just this version."""
        participant = self._participant
        if participant.phase != "member" or participant.view is None:
            return False
        here = participant.view.number, participant.version.number
        return any((wanted.view, wanted.at) == here for _, wanted in self._asked)

    def give(self) -> None:
        """On the script's thread, where the driver holds the participant's version."""
        participant = self._participant
        if not self._asked or participant.phase != "member" or participant.view is None:
            return
        view, number = participant.view.number, participant.version.number
        later = []
        for peer, wanted in self._asked:
            if wanted.view > view or wanted.at > number:
                later.append((peer, wanted))
            elif (wanted.view, wanted.at) == (view, number):
                self._exchange.send(peer, Header(Kind.SNAPSHOT, view, number), self._capture())
        self._asked = later

    def _capture(self) -> bytearray:
        version = self._participant.version
        return tree.pack(
            {
                "version": [version.number, version.view],
                "driver": self._driver.capture(),
                **self._progress.capture(),
            }
        )


class Patient:
    """Fetches the state. `heal` is what to fetch and from whom, None while there is nothing to fetch."""

    def __init__(self, driver: Driver, progress: Progress, exchange: Exchange, waiting: Waiting) -> None:
        self.heal: Heal | None = None
        self._packed: memoryview | None = None
        self._driver, self._progress = driver, progress
        self._exchange, self._waiting = exchange, waiting

    def prescribe(self, heal: Heal | None) -> None:
        """Whatever was to be fetched before is of no use any more; under the lock."""
        self.heal, self._packed = heal, None

    def place(self, peer: str, header: Header) -> memoryview | None:
        """Where a state goes that a source sends; under the lock."""
        if self.heal is None or self.heal.view.number != header.view or peer not in self.heal.sources:
            return None
        return memoryview(bytearray(header.length))

    def arrived(self, header: Header, packed: memoryview) -> None:
        """A state is complete, and its checksum right; under the lock."""
        if self.heal is not None and self.heal.view.number == header.view:
            self._packed = packed

    def fetch(self, heal: Heal) -> Version | None:
        """Ask one source after the other, and install what comes: on the script's thread.

        None when something else, or nothing, is to be fetched meanwhile. Raises RunLost when no source
        gives it.
        """
        waiting = self._waiting
        wanted = SnapshotWanted(heal.view.number, heal.at)
        for source in heal.sources * ATTEMPTS:
            self._exchange.send(source, Header(Kind.MESSAGE, wanted.view), encode(wanted))
            waiting.wait(
                lambda: self._packed is not None or self.heal is not heal,
                SNAPSHOT_SECONDS * waiting.patience,
            )
            with waiting.changed:
                if self.heal is not heal:
                    return None
                packed = self._packed
            if packed is None:
                log.warning("worker %s got no state from %s; asking again", waiting.name, source)
                continue
            state: Any = tree.unpack(packed)
            self._driver.install(state["driver"])
            with waiting.changed:
                self._progress.install(state)
            return Version(*state["version"])
        raise RunLost("no member gave this worker the state of the pool; see the log of the hub")
