"""What travels beside the shared tensors: the inner optimizers and further objects with a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np

from manyhands.errors import ModelError
from manyhands.sharing.tree import Foreign, Tree, check


class Stateful(Protocol):
    """Anything with a state that can be taken out and put back, as in PyTorch."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Settings(Protocol):
    """What a schedule changes in the optimizers: learning rates and the like."""

    def get(self) -> Any: ...

    def put(self, settings: Any) -> None: ...


Convert = Callable[[Any], Any]
"""One leaf of a state: from the framework to a tree's, or back."""


class Companions:
    """The optimizers and the `also` objects of one shared model, captured and installed together.

    The optimizers come by the name that errors use. `settings` is what a learning-rate schedule changes in
    them. Where a state is installed just after the optimizers' step, the rest of the script's loop body is
    still to run: it steps the schedule and adapts the gradient scale. So `stepped` keeps the settings and
    the plain values of each object as they were at that place. An object whose state holds arrays (a moving
    average of the parameters) would be dear to copy at each step; its state waits for `overdue` instead,
    which is called where the donor's was captured.
    """

    def __init__(
        self,
        optimizers: Mapping[str, object],
        also: Sequence[object],
        to_tree: Convert = lambda leaf: leaf,
        from_tree: Convert | None = None,
        settings: Settings | None = None,
    ) -> None:
        named = {**optimizers, **{f"also[{i}] ({type(it).__name__})": it for i, it in enumerate(also)}}
        for name, companion in named.items():
            if not (hasattr(companion, "state_dict") and hasattr(companion, "load_state_dict")):
                raise ModelError(
                    f"{name} is a {type(companion).__qualname__} without state_dict() and load_state_dict(), "
                    "so a late worker could not get its state; add both, or leave it out."
                )
        self._named = cast("Mapping[str, Stateful]", named)
        self._optimizers = cast("Mapping[str, Stateful]", optimizers)
        self._also = cast("Sequence[Stateful]", also)
        self._to_tree, self._from_tree, self._settings = to_tree, from_tree or own, settings
        self._after_step: tuple[Tree, list[Tree]] | None = None
        self._waiting: list[tuple[Stateful, Tree]] = []

    def check(self) -> None:
        """Raise `ModelError` now for a state that could not travel later."""
        for name, companion in self._named.items():
            check(self._state(companion), name)

    def stepped(self) -> None:
        """The optimizers have stepped just now."""
        raw = [companion.state_dict() for companion in self._also]
        kept = [None if _holds_arrays(state) else convert(state, self._to_tree) for state in raw]
        self._after_step = (self._current_settings(), kept)

    def capture(self, *, just_stepped: bool) -> dict[str, Tree]:
        """All states. `just_stepped`: the optimizers have, and the rest of the loop body is to run."""
        also = [self._state(companion) for companion in self._also]
        now = (self._current_settings(), also)
        settings, after = now if just_stepped or self._after_step is None else self._after_step
        return {
            "just_stepped": just_stepped,
            "optimizers": {name: self._state(it) for name, it in self._optimizers.items()},
            "also": also,
            "settings_after_step": settings,
            "also_after_step": after,
        }

    def install(self, tree: Tree, *, just_stepped: bool) -> None:
        """Put back what `capture` gave on another worker."""
        also, states = tree["also"], tree["optimizers"]
        if len(also) != len(self._also) or list(states) != list(self._optimizers):
            theirs, mine = (", ".join(names) or "no optimizer" for names in (states, self._optimizers))
            raise ModelError(
                f"Another worker shares {theirs} and {len(also)} further objects, this one {mine} and "
                f"{len(self._also)}; run the same script on all workers."
            )
        optimizers = [(optimizer, states[name]) for name, optimizer in self._optimizers.items()]
        for optimizer, state in optimizers:
            self._load(optimizer, state)
        if just_stepped and self._settings is not None:
            self._settings.put(convert(tree["settings_after_step"], self._from_tree))
        self._waiting = []
        for companion, state, after in zip(self._also, also, tree["also_after_step"], strict=True):
            if not just_stepped:
                self._load(companion, state)
            elif after is not None:
                self._load(companion, after)
            else:
                self._waiting.append((companion, state))
        if tree["just_stepped"] and not just_stepped:
            self._waiting = [*zip(self._also, also, strict=True), *optimizers]

    def overdue(self) -> None:
        """Install what had to wait for this place in the loop."""
        waiting, self._waiting = self._waiting, []
        for companion, state in waiting:
            self._load(companion, state)

    def _current_settings(self) -> Tree:
        if self._settings is None:
            return None
        return convert(self._settings.get(), lambda leaf: own(self._to_tree(leaf)))

    def _state(self, companion: Stateful) -> Tree:
        return convert(companion.state_dict(), self._to_tree)

    def _load(self, companion: Stateful, state: Tree) -> None:
        companion.load_state_dict(convert(state, self._from_tree))


def convert(tree: Any, leaf: Convert) -> Any:
    """The same nest of new, plain containers, each leaf converted; a Counter stays one."""
    if isinstance(tree, dict):
        pairs = {convert(key, leaf): convert(value, leaf) for key, value in tree.items()}
        return type(tree)(pairs) if type(tree).__name__ == "Counter" else pairs
    if isinstance(tree, list):
        return [convert(part, leaf) for part in tree]
    if isinstance(tree, tuple):
        return tuple(convert(part, leaf) for part in tree)
    return leaf(tree)


def own(leaf: Any) -> Any:
    """A leaf that may be kept: arrays are copied out of the memory they lie in."""
    if isinstance(leaf, Foreign):
        return Foreign(leaf.array.copy(), leaf.dtype)
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def _holds_arrays(tree: Tree) -> bool:
    if isinstance(tree, dict):
        return any(_holds_arrays(part) for part in tree.values())
    if isinstance(tree, (list, tuple)):
        return any(_holds_arrays(part) for part in tree)
    return hasattr(tree, "__array__")
