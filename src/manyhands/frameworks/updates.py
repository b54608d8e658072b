"""LocalSGD and DiLoCo, for any framework: step alone, then share what the parameters moved.

Memory beyond the plain loop, in parameter bytes: the base, the update (also where the combined one
lands), and the state of the outer optimizer (one for Nesterov).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from manyhands.core.digests import TURNED_OVER
from manyhands.core.messages import Tensor
from manyhands.errors import ModelError, ProtocolError
from manyhands.frameworks.companions import Companions
from manyhands.frameworks.digest import digest
from manyhands.frameworks.pace import Pace
from manyhands.sharing.combine import Array, blemish, finite
from manyhands.sharing.layout import Layout
from manyhands.sharing.outer import SGD
from manyhands.sharing.strategy import Strategy
from manyhands.sharing.tree import Tree
from manyhands.worker.driving import Allocate, Outcome, Rounds


class Surface(Protocol):
    """The tensors of a model as one flat vector: first the parameters, then the buffers.

    A parameter stands there as it is, a buffer as its change since it last was the same everywhere.
    """

    layout: Layout
    parameters: int
    """Elements of the vector that are parameters; the rest are buffers."""

    def host(self, vector: Array) -> Array:
        """A vector to read into: this one, which is new and zero, or another that serves better."""

    def release(self) -> None:
        """No vector that came from `host` is read into any more."""

    def read(self, out: Array, a: int = 0, b: int | None = None) -> None:
        """Write elements [a, b) into `out`; raises `ModelError` if the tensors are not what they were.

        The buffers are among them all, or not at all.
        """

    def write(self, vector: Array, a: int = 0, b: int | None = None) -> None:
        """Write a vector of elements [a, b) into the tensors, and into the vector what they then hold.

        The two differ where the model's dtype is narrower; a buffer's change is 0 afterwards.
        """

    def watch(self, moved: Callable[[], None], stepped: Callable[[], None]) -> Callable[[], None] | None:
        """Call `stepped` after each local step, and `moved` after each earlier part of one.

        Returns what ends it; None where the script calls `step` itself.
        """

    def capture_rest(self) -> Tree:
        """What a joiner needs and the vector does not hold: frozen parameters, agreed buffers."""

    def install_rest(self, rest: Tree) -> None: ...

    def agreed(self) -> list[Array]:
        """The buffers as they last were the same everywhere, for the digest."""


class Updates:
    """The driver of strategies that share updates."""

    needs_user_step = False
    shares_buffer = True
    trailing = 0
    _pieces = 1
    """Rounds that it takes to share the whole vector."""

    def __init__(self, surface: Surface, companions: Companions, strategy: Strategy) -> None:
        self.allocate: Allocate = np.zeros
        self._surface, self._companions, self._strategy = surface, companions, strategy
        self._rounds: Rounds | None = None
        self._unwatch: Callable[[], None] | None = None
        self._pace = Pace(strategy.every, strategy.fragments)
        self._owed = 0  # rounds until all that was learned is shared
        self._in_step = False
        self._sealed = ""  # the digest of the base, as of when it was last written
        self._broken = False  # it has been found to hold other bits since

    @property
    def layout(self) -> Layout:
        return self._surface.layout

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.layout.tensors

    @cached_property
    def contribution(self) -> Array:
        return self._surface.host(self.allocate(self.layout.elements, self.layout.dtype))

    @property
    def combined(self) -> Array:
        return self.contribution

    @cached_property
    def _base(self) -> Array:
        """The parameters of the last version; 0 for each buffer."""
        return np.zeros(self._surface.layout.elements, self._surface.layout.dtype)

    @cached_property
    def _outer_state(self) -> tuple[Array, ...]:
        return self._strategy.outer.state_like(self._surface.parameters, self.layout.dtype)

    def attach(self, rounds: Rounds) -> None:
        self._rounds = rounds
        if rounds.alone and self._strategy.outer == SGD(1.0):
            return  # the average of one is itself: nothing to do, and not one bit may change
        if not rounds.alone:
            self._companions.check()
        self._surface.read(self._base)
        self._seal()
        self._pace.restart()
        self._unwatch = self._surface.watch(self._moved, self._stepped)

    def detach(self) -> None:
        if self._rounds is not None and not self._rounds.alone:
            missed = self._rounds.missed(wait=False)
            if missed is not None and missed.kind == "committed" and not self._turned_over():
                self._miss(self._rounds, missed)
            self._surface.write(self._base)
        self._rounds = None
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        self._surface.release()

    def no_sync(self) -> AbstractContextManager[None]:
        """Gradients are never shared here."""
        return nullcontext()

    def average(self, gradients: Any) -> Any:
        """The gradients themselves: only updates are shared."""
        return gradients

    def step(self) -> None:
        if self._unwatch is None:
            self._stepped()

    def flush(self) -> Outcome | None:
        rounds = self._attached()
        return self._propose(rounds) if self._unshared and not rounds.alone else None

    @property
    def _unshared(self) -> bool:
        """Something that was learned here is in no version yet."""
        return self._owed > 0

    def idle(self) -> Outcome:
        """What is left of local steps goes along; without any, the update is zero."""
        rounds = self._attached()
        if rounds.alone:
            raise ProtocolError("a pool of one has nobody to wait for")
        return self._propose(rounds)

    def refill(self) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            self._surface.read(self.contribution)
            np.subtract(self._base, self.contribution, out=self.contribution)

    def capture(self) -> Tree:
        return {
            "vector": self._base,
            "outer": list(self._outer_state),
            "rest": self._surface.capture_rest(),
            **self._companions.capture(just_stepped=self._in_step),
        }

    def install(self, tree: Tree) -> None:
        _fit("vector", self._base, tree["vector"])
        for state, given in zip(self._outer_state, tree["outer"], strict=True):
            _fit("state of the outer optimizer", state, given)
        self._seal()
        self._surface.install_rest(tree["rest"])
        self._surface.write(self._base)
        self._companions.install(tree, just_stepped=self._in_step)
        self._owed = 0
        self._pace.restart()

    def committed(self) -> list[Array]:
        return [self._base, *self._outer_state]

    def digest(self) -> str:
        return digest([*self.committed(), *self._surface.agreed()])

    def _attached(self) -> Rounds:
        if self._rounds is None:
            raise ProtocolError("this driver takes part in no pool")
        return self._rounds

    def _moved(self) -> None:
        """The parameters have changed, if only as a part of a local step."""
        rounds = self._rounds
        if rounds is not None and not rounds.alone and not rounds.over:
            rounds.learned()
            self._owed = self._pieces

    def _stepped(self) -> None:
        rounds = self._rounds
        if rounds is None or (rounds.alone and self._strategy.outer == SGD(1.0)):
            return
        if rounds.alone:
            self._pace.stepped()
            self._step_alone()
            return
        if rounds.over:
            return
        self._pace.stepped()
        self._moved()
        self._companions.overdue()
        self._companions.stepped()
        self._in_step = True
        try:
            self._due(rounds)
        finally:
            self._in_step = False

    def _due(self, rounds: Rounds) -> None:
        """Share what is due after a local step; with a round missed in it, only where all others wait."""
        missed = self._take_missed(rounds)
        if rounds.hurry or (missed is None and self._pace.due):
            self._propose(rounds)

    def _step_alone(self) -> None:
        if self._pace.due:
            self.refill()
            self._adopt(counts=True)
            self._pace.restart()

    def _propose(self, rounds: Rounds) -> Outcome:
        if (missed := self._take_missed(rounds, claim=True)) is not None:
            return missed
        rounds.settled()
        self.refill()
        rejected = self._announce(rounds, 0, self.layout.elements)
        outcome = rounds.finish(b"", rejected)
        self._conclude(rounds, outcome)
        self._pace.restart()
        return outcome

    def _take_missed(self, rounds: Rounds, *, claim: bool = False) -> Outcome | None:
        """Take up a round that has closed without this worker, if there is one."""
        outcome = rounds.missed(claim=claim)
        if outcome is not None:
            self._miss(rounds, outcome)
        return outcome

    def _miss(self, rounds: Rounds, outcome: Outcome) -> None:
        """What was learned here since the last version stays, and goes with the next contribution.

        All but the changes of buffers: statistics, which are the others' now.
        """
        a, b = self._piece
        n, owed, broken = min(b, self._surface.parameters), self._owed, self._turned_over()
        learned = np.empty(n - a, self._base.dtype)
        with np.errstate(invalid="ignore", over="ignore"):  # the next contribution is rejected then
            self._surface.read(learned, a, n)
            np.subtract(learned, self._base[a:n], out=learned)
        self._conclude(rounds, outcome)
        if outcome.kind == "committed" and owed and not broken:
            np.add(learned, self._base[a:n], out=learned)
            self._surface.write(learned, a, n)
            self._owed = self._pieces

    @property
    def _piece(self) -> tuple[int, int]:
        """Elements [a, b) of the vector are shared in this round."""
        return 0, self._surface.layout.elements

    def _announce(self, rounds: Rounds, a: int, b: int) -> str:
        """Every segment of the contribution, elements [a, b) of the vector; or why it must not count."""
        segments = range(len(self.layout.segments))
        rejected = self._blemish(a, b) or next(filter(None, map(rounds.problem, segments)), "")
        if not rejected:  # a reducer that took it in could not take it out: it combines in place
            for segment in segments:
                rounds.ready(segment)
        return rejected

    def _conclude(self, rounds: Rounds, outcome: Outcome) -> None:
        """Take up how a round has ended; who has found its base broken takes up the others' state instead.

        Before anybody compares digests: of two members neither is right by number.
        """
        if outcome.kind == "committed" and self._broken and rounds.size > 1:
            rounds.resign(TURNED_OVER)
            rounds.heal()
        elif outcome.kind == "replaced":
            rounds.heal()
        else:
            self._adopt(counts=outcome.total_weight > 0)
            self._seal()
            rounds.adopted()

    def _blemish(self, a: int, b: int) -> str:
        """Why the contribution, elements [a, b) of the vector, must not count; "" where it may."""
        if self._turned_over():  # the update beside it may be as large as floats are
            return TURNED_OVER
        if finite(self.contribution):
            return ""
        for part in self._surface.layout.parts(a, b):
            found = self.contribution[part.at : part.at + part.b - part.a]
            if not finite(found):
                return f"{blemish(found)} in the update of {self.tensors[part.tensor].name}"
        raise ProtocolError("a vector is not finite, and all its tensors are")

    def _turned_over(self) -> bool:
        """The base holds other bits than when it was written last."""
        self._broken = self._broken or digest([self._base]) != self._sealed
        return self._broken

    def _seal(self) -> None:
        self._sealed, self._broken = digest([self._base]), False

    def _adopt(self, *, counts: bool) -> None:
        """Apply the combined update; if nothing counted the version is the base as it was."""
        if counts:
            n = self._surface.parameters
            self._strategy.outer.apply(self._base[:n], self.combined[:n], self._outer_state)
            SGD(1.0).apply(self._base[n:], self.combined[n:], ())  # momentum would carry statistics too far
        self._surface.write(self._base)
        self._owed = 0


def _fit(what: str, mine: Array, given: Any) -> None:
    if not isinstance(given, np.ndarray) or given.shape != mine.shape or given.dtype != mine.dtype:
        raise ModelError(
            f"The {what} of another worker ({getattr(given, 'size', 'no')} elements) does not fit this model "
            f"({mine.size} elements); run the same script on all workers."
        )
    np.copyto(mine, given)
