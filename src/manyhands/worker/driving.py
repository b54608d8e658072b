"""Between the pool and a framework: who says what to whom while a model is shared.

A `Driver` knows the user's model and moves numbers between it and flat arrays; `Rounds` knows the
pool and moves flat arrays between workers. `driver_for` finds the driver for a model.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from manyhands.core.messages import Tensor
from manyhands.errors import ModelError
from manyhands.sharing.combine import Array
from manyhands.sharing.layout import Layout
from manyhands.sharing.strategy import Strategy
from manyhands.sharing.tree import Tree


@dataclass(frozen=True)
class Outcome:
    """How a round ended for this worker.

    "committed": the combined vector is in `Driver.combined`, or anything if nothing counted;
    `total_weight` is the sum of the weights in it, and `present` what each contributing member (of
    weight above 0) gave to `Rounds.finish`. `late`: somebody's contribution was not waited for.
    "replaced": this worker was evicted or fell behind; its state comes from elsewhere.
    """

    kind: Literal["committed", "replaced"]
    total_weight: float = 0.0
    present: tuple[bytes, ...] = ()
    late: bool = False


class Rounds(Protocol):
    """What a driver may ask of the pool, on the thread that trains; `learned` and `ready` on any."""

    @property
    def size(self) -> int:
        """Members now."""

    @property
    def alone(self) -> bool:
        """A pool of one without a hub: nothing is ever exchanged, and no method of this class is called."""

    @property
    def hurry(self) -> bool:
        """Everyone else waits for this worker, or it was replaced: propose what there is at the next step."""

    @property
    def over(self) -> bool:
        """What is learned now is for no version, unless others begin one: they may have ended.

        So it is when a stop condition is met, and for the rest of the loop body in which all data, and what
        was learned from them, came to be shared.
        """

    def learned(self, *, earlier: bool = False) -> None:
        """The script has learned from the batch in hand, and it is not shared yet. Never blocks.

        `earlier`: from a batch before, a part of which is in the next contribution.
        """

    def problem(self, segment: int) -> str:
        """Why this segment of the contribution, which is finite, cannot travel encoded; "" where it can.

        Asked before it is `ready`, and of all segments where slices are combined in place: there what has
        gone out cannot be taken out again.
        """

    def ready(self, segment: int) -> None:
        """This segment of the contribution is final until `finish` returns, and can travel. Never blocks."""

    def missed(self, *, claim: bool = False, wait: bool = True) -> Outcome | None:
        """How a round ends, once, whose deadline passed during a local step of this worker; else None.

        `claim`: this worker is about to write a contribution, and from now on the round waits for it.
        """

    def propose(self, present: bytes, rejected: str = "") -> None:
        """The contribution is complete: every segment is ready, unless it must not count. Never blocks.

        `present`: one bit for each shared tensor, little-endian, set where the contribution holds a
        value for it; empty means all. `rejected`: why the contribution must not count.
        """

    def outcome(self, *, wait: bool = True) -> Outcome | None:
        """How the round that was proposed has ended, once; None where it has not, and is not waited for."""

    def finish(self, present: bytes, rejected: str = "") -> Outcome:
        """Propose, and wait for the outcome."""

    def adopted(self) -> None:
        """The outcome is applied; `Driver.digest` now speaks of the new version."""

    def resign(self, why: str) -> None:
        """What this worker holds is wrong: it is replaced, and is to `heal`."""

    def settled(self) -> None:
        """Wait until every member holds the last version, so that `Driver.combined` may be overwritten."""

    def heal(self) -> None:
        """After "replaced", at a point where the state may change: fetch it and `Driver.install` it."""


Allocate = Callable[[int, np.dtype[Any]], Array]


class Driver(Protocol):
    """One shared model, seen from the pool.

    `allocate` makes its vectors, zeros of a length and dtype: `np.zeros`, unless it is told better before
    `attach`.
    """

    allocate: Allocate

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is shared, in the order of the flat vector."""

    @property
    def layout(self) -> Layout: ...

    @property
    def contribution(self) -> Array:
        """The flat vector this worker proposes; allocated when first asked for."""

    @property
    def combined(self) -> Array:
        """Where the combined vector goes; may be the same array as `contribution`.

        Only the pool writes to it; where both are one, see `Rounds.settled`.
        """

    @property
    def needs_user_step(self) -> bool:
        """A round cannot be done without the script stepping: `idle` is impossible."""

    def attach(self, rounds: Rounds) -> None:
        """Begin to take part; the state of the model now is the base of the next round."""

    def detach(self) -> None:
        """Have nothing to do with the model any more, and leave it as the pool's last version has it."""

    @property
    def shares_buffer(self) -> bool:
        """`contribution` and `combined` are one array."""

    def refill(self) -> None:
        """Write the contribution again, after a round that was aborted; only where it shares `combined`."""

    def capture(self) -> Tree:
        """All that a joiner needs of the version before the round that is waited for in `Rounds.finish`.

        Arrays in it are views of the live state: `tree.pack` it before `finish` returns.
        """

    def install(self, tree: Tree) -> None:
        """Take over a captured state: when sharing begins, or where `heal` is called."""

    def committed(self) -> list[Array]:
        """The arrays that `digest` covers and stay where they are on the host; no copies."""

    def digest(self) -> str:
        """A hash, in hex, of the shared state after a commit; the same on all members."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Gradients computed within are accumulated here and not shared yet."""

    def average(self, gradients: Any) -> Any:
        """The pool's average of the gradients, in the structure given."""

    def step(self) -> None:
        """The script has updated the parameters once."""

    @property
    def trailing(self) -> int:
        """How many rounds it takes, after the last data was shared, until all that was learned is shared.

        Each shares another fragment of the model, the same ones again after as many versions; 0 where each
        shares all of it.
        """

    def flush(self) -> Outcome | None:
        """Propose the local steps since the last round early; None if there were none."""

    def idle(self) -> Outcome:
        """Take part in a round without anything new."""


FRAMEWORKS: tuple[tuple[str, str], ...] = (
    ("torch", "manyhands.frameworks.torch"),
    ("numpy", "manyhands.frameworks.arrays"),
)
"""A package, and our module for its models, which is imported only where the script imported the package.

Such a module has `driver_for(model, optimizer, strategy, also) -> Driver | None`: None for a model that is
not of its kind.
"""


def driver_for(
    model: object, optimizer: object, strategy: Strategy, also: Iterable[object] | None = None
) -> Driver:
    """The driver for this kind of model.

    Raises `ModelError` where there is none or it cannot be shared, `StrategyError` where not in this way.

    `also`: further objects with `state_dict()` and `load_state_dict()` whose state a joiner needs.
    """
    others: Sequence[object] = tuple(also or ())
    for package, module in FRAMEWORKS:
        if package in sys.modules:
            driver: Driver | None = importlib.import_module(module).driver_for(
                model, optimizer, strategy, others
            )
            if driver is not None:
                return driver
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise ModelError(
        f"A {kind} cannot be shared; give share() a torch.nn.Module, or a dict or list of numpy arrays."
    )
