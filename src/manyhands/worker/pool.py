"""The pool as a script sees it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

from manyhands.core.messages import FINISHED
from manyhands.errors import RunOver, UserError
from manyhands.sharing.strategy import EveryStep, Strategy
from manyhands.worker import termination, testimony
from manyhands.worker.alone import Alone
from manyhands.worker.batches import Batches, declare
from manyhands.worker.datasets import source_for
from manyhands.worker.driving import driver_for
from manyhands.worker.session import Session
from manyhands.worker.settings import Settings
from manyhands.worker.shared import Shared
from manyhands.worker.stopping import StopRule


class Pool:
    """The workers that learn together, this one among them."""

    def __init__(self, session: Session | Alone) -> None:
        self._session = session
        self._shared: Shared | None = None
        self._left = False

    @property
    def rank(self) -> int:
        """This worker's place in the view, or before the first one among those expected.

        After leaving: its place when the last version was made, so that just one worker is 0.
        """
        return self._session.rank

    @property
    def size(self) -> int:
        """Members of the view; before the first view, the workers expected."""
        return self._session.size

    @property
    def view(self) -> int:
        """The number of the view; 0 before the first one and in a pool of one."""
        return self._session.view

    def partition(
        self,
        dataset: Any,
        batch_size: int = 32,
        epochs: int = 1,
        *,
        order: str = "dynamic",
        shuffle: bool = True,
        seed: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 0,
        pin: bool = False,
        ahead: int = 2,
    ) -> Batches:
        """This worker's batches of a data set that all workers have; every sample is committed once an epoch.

        `dataset`: numpy arrays (or a tuple or dict of them), a torch Dataset, a sequence, or file names.
        `order` "dynamic" gives a fast worker more; "static" gives batch k to rank k mod size.
        Raises DataError for data that cannot be partitioned, or that the other workers do not have.
        """
        source = source_for(dataset, collate)
        spec = declare(
            len(self._session.progress.holdings),
            source.length,
            batch_size=batch_size,
            epochs=epochs,
            order=order,
            shuffle=shuffle,
            seed=seed,
        )
        self._session.declare(spec)
        return Batches(source, spec, self._session, workers=workers, pin=pin, ahead=ahead)

    def share(
        self,
        model: Any,
        optimizer: Any = None,
        strategy: Strategy | None = None,
        *,
        also: Any = (),
    ) -> Shared:
        """Share a model for the length of a `with` block, by a strategy (`EveryStep()` by default).

        `optimizer`: for PyTorch one, or a list of several in the order in which they step.
        `also`: whatever else a joiner must have: schedulers, a GradScaler, averages; anything with
        `state_dict()` and `load_state_dict()`, one of them or a list. Raises ModelError for a model that
        cannot be shared.
        """
        if self._shared or self._left:
            raise UserError("a pool shares one model, once; call join() in a new process for another")
        strategy = strategy or EveryStep()
        if not isinstance(strategy, Strategy):
            raise UserError(f"share() got strategy={strategy!r}; give EveryStep(), LocalSGD(n) or DiLoCo(n)")
        if hasattr(also, "state_dict") or not isinstance(also, Iterable):
            also = () if also is None else (also,)
        driver = driver_for(model, optimizer, strategy, also)
        self._shared = Shared(self._session, driver, strategy)
        return self._shared

    def stop_when(
        self,
        metric: str = "loss",
        *,
        below: float | None = None,
        above: float | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        higher: bool | None = None,
    ) -> None:
        """End the batches of all workers, at the same version, when a logged metric says so.

        What is judged is what the workers logged. Under `LocalSGD` and `DiLoCo` that is of their own models,
        before these were averaged: the averaged model may miss a target that they met.

        `below`, `above`: a target for the pool's mean. `patience`: so many evaluations (versions to
        which somebody logged the metric) without an improvement of more than `min_delta`. `higher`: whether
        a higher value is better; needed with `patience` where neither a target nor the name (a loss, an
        error, a perplexity; an accuracy, a score, a reward, a precision, a recall) says so. Raises
        ConfigurationError for a condition that makes no sense.
        """
        self._session.progress.rules.append(StopRule(metric, below, above, patience, min_delta, higher))

    def leave(self) -> None:
        """Leave the pool, where that has not been done: leaving the `with` block of `share` does it too.

        Raises UserError within that block.
        """
        if self._shared is not None and self._shared.within:
            raise UserError(
                "leave() was called within `with pool.share(...)`; end that block, by `break` or `return` "
                "out of the loop, and this worker leaves with what it has learned"
            )
        if not self._left and not (self._shared is not None and self._shared.ended):
            self._session.leave(finished=True, why=FINISHED)
        self._left = True


def join() -> Pool:
    """Join the pool that the environment names (MANYHANDS_HUB), or be a pool of one.

    Raises HubUnreachable, VersionMismatch or ConfigurationError, each with the remedy. When the run is
    over already the process ends, with exit code 0 and a word.
    """
    testimony.came()
    settings = Settings.of()
    if not settings.hub:
        return Pool(Alone())
    if not logging.getLogger().handlers:
        logging.basicConfig(format="manyhands: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        pool = Pool(Session(settings))
    except RunOver as over:
        print(f"manyhands: {over}", file=sys.stderr)
        raise SystemExit(0) from None
    termination.obey(settings.grace)
    return pool
