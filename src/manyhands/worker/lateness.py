"""Rounds that close while a worker is in the middle of a local step."""

from __future__ import annotations

from collections.abc import Callable
from threading import Timer

from manyhands.core.rounds import Participant
from manyhands.errors import ProtocolError
from manyhands.sharing.rhythm import All, Deadline
from manyhands.worker.waiting import Waiting

SETTLE_SECONDS = 30.0


class Lateness:
    """Lets a round go on without this worker when it has waited for it until the strategy's deadline.

    `absent`: that has happened, and the script's thread has not taken the outcome yet. `abstain` proposes a
    contribution that holds nothing, and is called on a thread of its own, without the lock; all else under
    it. `free` says that no outcome waits for the script's thread.
    """

    def __init__(
        self,
        close: All | Deadline,
        participant: Participant,
        waiting: Waiting,
        free: Callable[[], bool],
        abstain: Callable[[], None],
    ) -> None:
        self.absent = False
        self._seconds = close.seconds if isinstance(close, Deadline) else None
        self._participant, self._waiting = participant, waiting
        self._free, self._abstain = free, abstain
        self._claimed = False
        self._timed: tuple[int, int] | None = None
        self._timer: Timer | None = None

    def claim(self) -> None:
        """The script's thread writes the contribution: the round waits for it."""
        self._claimed = True

    def over(self) -> None:
        """The round has ended for this worker."""
        self._claimed = False

    def look(self) -> None:
        """Something has happened: if others have begun a round, this worker's time runs."""
        this = self._round()
        if self._seconds is None or this is None or this == self._timed:
            return
        self.stop()
        self._timed = this
        self._timer = Timer(self._seconds, self._passed, [this])
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """No deadline passes any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _round(self) -> tuple[int, int] | None:
        """View and base of the round that waits for the script's thread; None where none does."""
        participant = self._participant
        if participant.view is None or not participant.called or not self._free():
            return None
        if self._claimed or self.absent:
            return None
        return participant.view.number, participant.version.number

    def _passed(self, timed: tuple[int, int]) -> None:
        with self._waiting.changed:
            # Combined slices land where this worker's last ones lie, which others may still lack.
            self._waiting.changed.wait_for(
                lambda: self._participant.settled or self._round() != timed, SETTLE_SECONDS
            )
            if self._round() != timed or self._participant.frozen or not self._participant.settled:
                if self._timed == timed:
                    self._timed = None
                return
            self.absent = True
        try:
            self._abstain()
        except ProtocolError as error:
            self._waiting.fail(error)
