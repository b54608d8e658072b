"""The model while it is shared: what a training loop says to the pool."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, Self

from manyhands.core.messages import FINISHED
from manyhands.errors import ManyhandsError, UserError
from manyhands.sharing.strategy import Strategy
from manyhands.worker import termination
from manyhands.worker.alone import Alone
from manyhands.worker.driving import Driver
from manyhands.worker.session import Session

LONGEST_ERROR = 300


class Shared:
    """A context: within it the model is the pool's, and on leaving it this worker leaves the pool.

    `within` and `ended` say whether the script is inside it, or has been.
    """

    def __init__(self, session: Session | Alone, driver: Driver, strategy: Strategy) -> None:
        self._session, self._driver, self._strategy = session, driver, strategy
        self.within = self.ended = False
        self._deferring = ExitStack()

    def __enter__(self) -> Self:
        if self.within or self.ended:
            raise UserError("the model was shared before; enter `with pool.share(...)` once")
        self._session.share(self._driver, self._strategy)
        self.within = True
        self._deferring.enter_context(termination.deferred())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deferring.close()
        try:
            if kind is None and not self.stopped:
                self._session.conclude(self._driver)
        except BaseException as raised:
            kind, error = type(raised), raised
            raise
        finally:
            self.within, self.ended = False, True
            told = isinstance(error, KeyboardInterrupt) or (
                isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
            )
            if kind is None:
                why = self.stopped or FINISHED
            else:
                why = "it was told to end" if told else f"it raised {_in_short(kind, error)}"
            fails = isinstance(error, Exception) and not isinstance(error, ManyhandsError)
            try:
                self._driver.detach()
            finally:
                self._session.leave(finished=kind is None, why=why, told=told, raised=fails)

    def log(self, **metrics: Any) -> None:
        """Report numbers of this step, by name; versions carry their mean, weighted by calls.

        Values: numbers or scalar arrays and tensors. They go with the next version: what is logged after
        the last step is in none, of which a worker warns where nothing of that name was logged before.
        """
        for name, value in metrics.items():
            try:
                number = float(value.detach() if hasattr(value, "detach") else value)
            except (TypeError, ValueError):
                raise UserError(
                    f"log({name}=...) got a {type(value).__name__}; give a number or a scalar tensor"
                ) from None
            self._session.progress.log(name, number)

    def no_sync(self) -> AbstractContextManager[None]:
        """Gradients computed within are accumulated, and shared by the next backward outside."""
        return self._driver.no_sync()

    def average(self, gradients: Any) -> Any:
        """The pool's average of the gradients, for models of plain arrays."""
        return self._driver.average(gradients)

    def step(self) -> None:
        """The parameters have been updated once, for models of plain arrays."""
        self._driver.step()

    @property
    def metrics(self) -> dict[str, float]:
        """The pool's mean of each metric, as of the newest version that had it."""
        return dict(self._session.progress.newest)

    @property
    def stopped(self) -> str:
        """Why a condition of `Pool.stop_when` is met; "" while none is."""
        return self._session.progress.stopped


def _in_short(kind: type[BaseException], error: BaseException | None) -> str:
    """The first line of an error, cut where it goes on and on: some print their arrays."""
    line = str(error).partition("\n")[0]
    return f"{kind.__name__}: {line if len(line) <= LONGEST_ERROR else line[:LONGEST_ERROR] + '…'}"
