"""Which failures ended which workers: what has been shown, and whether the script fails on all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from manyhands.engines.output import Failure

BEYOND_RESTART = frozenset(
    {"UserError", "StrategyError", "DataError", "ModelError", "VersionMismatch", "RunLost", "RunOver"}
)
"""Our errors (see `manyhands.errors`) that the same script will meet again however often it is started."""

OF_THE_RUN = frozenset({"RunLost", "RunOver"})
"""Those of them that say nothing of the script."""


@dataclass
class Failures:
    """The failure that ended each worker's last incarnation, with the wall time at which that had started."""

    _last: dict[str, tuple[Failure, float]] = field(default_factory=dict)
    _untold: set[str] = field(default_factory=set)
    _shown: set[tuple[str, ...]] = field(default_factory=set)
    _first: dict[tuple[str, ...], str] = field(default_factory=dict)

    def ended(self, worker: str, failure: Failure | None, since: float) -> None:
        """A worker ended; without a word where `failure` is None."""
        if failure is None:
            self._last.pop(worker, None)
        else:
            self._last[worker] = (failure, since)
            self._first.setdefault(failure.signature, worker)
            self._untold.add(worker)

    def of(self, worker: str) -> Failure | None:
        found = self._last.get(worker)
        return found[0] if found is not None else None

    def first_with(self, worker: str) -> str:
        """The worker that was the first to fail in the way of this one."""
        failure = self.of(worker)
        return self._first[failure.signature] if failure is not None else worker

    def forgive(self, worker: str) -> None:
        """This failure is none: nobody need see it."""
        self._untold.discard(worker)

    def to_show(self, worker: str) -> tuple[str, ...]:
        """The lines of a worker's failure; none if the same one has been shown before, by any worker."""
        failure = self.of(worker)
        if worker not in self._untold or failure is None:
            return ()
        self._untold.discard(worker)
        if failure.signature in self._shown:
            return ()
        self._shown.add(failure.signature)
        return failure.text

    def beyond_restart(self, worker: str) -> bool:
        """Would this worker fail in the same way again?"""
        failure = self.of(worker)
        return failure is not None and failure.kind in BEYOND_RESTART

    def everywhere_since(self, workers: Iterable[str]) -> float | None:
        """When the first of these workers started, if the same failure ended all of them; else None."""
        found = [self._last.get(worker) for worker in workers]
        known = [each for each in found if each is not None]
        if not known or len(known) < len(found) or len({failure.signature for failure, _ in known}) > 1:
            return None
        return min(since for _, since in known)
