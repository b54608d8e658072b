"""Models of plain numpy arrays, in a dict or a list.

One loop serves all strategies::

    gradients = shared.average(gradient(parameters, batch))
    for name in parameters:
        parameters[name] -= rate * gradients[name]
    shared.step()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np

from manyhands.core.messages import Tensor
from manyhands.errors import ModelError, ProtocolError
from manyhands.frameworks.companions import Companions
from manyhands.frameworks.digest import digest
from manyhands.frameworks.presence import mask, union
from manyhands.frameworks.streaming import updates_driver
from manyhands.sharing.combine import Array, blemish, finite
from manyhands.sharing.layout import Layout
from manyhands.sharing.strategy import Strategy
from manyhands.sharing.tree import Tree
from manyhands.worker.driving import Allocate, Driver, Outcome, Rounds

Container = dict[Any, Any] | list[Any] | tuple[Any, ...]


def driver_for(model: object, optimizer: object, strategy: Strategy, also: Sequence[object]) -> Driver | None:
    """A driver for a dict, list or tuple of float arrays; None for any other model.

    `optimizer` may be None, or any object with `state_dict()` and `load_state_dict()`.
    """
    if not isinstance(model, (dict, list, tuple)):
        return None
    if isinstance(optimizer, (list, tuple)):
        raise ModelError(
            f"share() got {len(optimizer)} optimizers for a model of arrays; give one object with the state "
            "of all, or the others as also=[...]."
        )
    surface = ArraySurface(model)
    companions = Companions({} if optimizer is None else {"optimizer": optimizer}, also)
    if strategy.what == "gradients":
        return ArrayGradients(surface, companions)
    return updates_driver(surface, companions, strategy)


def _keys(container: Container) -> list[Any]:
    return list(container) if isinstance(container, dict) else list(range(len(container)))


class ArraySurface:
    """A container of arrays as one flat vector, in the container's order.

    The arrays are looked up anew each time, so both `p[k] -= d` and `p[k] = p[k] - d` will do.
    """

    def __init__(self, model: Container) -> None:
        self._model, self._keys = model, _keys(model)
        if not self._keys:
            raise ModelError(
                "The model has no array to share; give share() the dict or list that holds them."
            )
        for key in self._keys:
            value = model[key]
            if not isinstance(value, np.ndarray):
                raise ModelError(
                    f"{key!r} in the model is a {type(value).__qualname__}; share numpy arrays only."
                )
            if value.dtype not in (np.float16, np.float32, np.float64):
                raise ModelError(
                    f"{key!r} in the model is an array of {value.dtype}, which has no average; "
                    "share float arrays only."
                )
        self.layout = Layout(
            tuple(Tensor(str(key), model[key].shape, model[key].dtype.name) for key in self._keys)
        )
        self.parameters = self.layout.elements
        if not self.parameters:
            raise ModelError("All arrays of the model are empty; there is nothing to train.")

    def __iter__(self) -> Iterator[tuple[Any, Array]]:
        for key, tensor in zip(self._keys, self.layout.tensors, strict=True):
            array = self._model[key]
            if not isinstance(array, np.ndarray) or (array.shape, array.dtype.name) != (
                tensor.shape,
                tensor.dtype,
            ):
                raise ModelError(
                    f"{key!r} in the model was an array of {tensor.dtype} of shape {tensor.shape} and now is "
                    f"{getattr(array, 'dtype', type(array).__qualname__)} {getattr(array, 'shape', '')}; "
                    "update arrays in place, without changing their kind."
                )
            yield key, array

    def match(self, gradients: Any) -> None:
        """Raise `ModelError` if these cannot be the gradients of this model."""
        if isinstance(gradients, dict):
            fit = isinstance(self._model, dict) and not gradients.keys() - set(self._keys)
        else:
            fit = not isinstance(self._model, dict) and len(gradients) == len(self._keys)
        if not fit:
            given = (
                sorted(map(str, gradients)) if isinstance(gradients, dict) else f"{len(gradients)} of them"
            )
            raise ModelError(
                f"The gradients ({given}) do not fit the model, which holds "
                f"{[tensor.name for tensor in self.layout.tensors]}; give average() a container like the one "
                "given to share()."
            )

    def host(self, vector: Array) -> Array:
        return vector

    def release(self) -> None:
        pass

    def read(self, out: Array, a: int = 0, b: int | None = None) -> None:
        arrays = [array for _, array in self]
        for part in self.layout.parts(a, self.parameters if b is None else b):
            np.copyto(out[part.at : part.at + part.b - part.a], arrays[part.tensor].flat[part.a : part.b])

    def write(self, vector: Array, a: int = 0, b: int | None = None) -> None:
        arrays = [array for _, array in self]
        for part in self.layout.parts(a, self.parameters if b is None else b):
            array, place = arrays[part.tensor], vector[part.at : part.at + part.b - part.a]
            array.flat[part.a : part.b] = place
            if array.dtype != vector.dtype:
                place[:] = array.flat[part.a : part.b]

    def watch(self, moved: Callable[[], None], stepped: Callable[[], None]) -> None:  # noqa: ARG002
        return None

    def capture_rest(self) -> Tree:
        return None

    def install_rest(self, rest: Tree) -> None:
        pass

    def agreed(self) -> list[Array]:
        return []


class ArrayGradients:
    """The driver of `EveryStep` for arrays: the script hands its gradients to `average`."""

    needs_user_step = True
    shares_buffer = False
    trailing = 0

    def __init__(self, surface: ArraySurface, companions: Companions) -> None:
        self._surface, self._companions = surface, companions
        self._rounds: Rounds | None = None
        self._replaced = False
        self._stepped = False
        self.allocate: Allocate = np.zeros
        self._averaged = False

    @property
    def layout(self) -> Layout:
        return self._surface.layout

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.layout.tensors

    @cached_property
    def contribution(self) -> Array:
        return self.allocate(self.layout.elements, self.layout.dtype)

    @cached_property
    def combined(self) -> Array:
        return self.allocate(self.layout.elements, self.layout.dtype)

    def attach(self, rounds: Rounds) -> None:
        self._rounds = rounds
        if not rounds.alone:
            self._companions.check()

    def detach(self) -> None:
        self._rounds = None

    def no_sync(self) -> AbstractContextManager[None]:
        """Add gradients up yourself, and give the sum to `average`."""
        return nullcontext()

    def average(self, gradients: Any) -> Any:
        """New arrays, in a container like the one given.

        `gradients`: a dict (keys may be missing) or list (entries may be None) like the model. Who lacks a
        gradient that others have gets their average; it is missing, or None, only where nobody has it.
        """
        rounds = self._rounds
        if rounds is None or rounds.alone:
            return gradients
        self._companions.overdue()
        if self._replaced:  # the script never called `step`: this is as good a place
            self._heal(rounds)
            return self._like(gradients, None)
        rounds.learned()
        present, rejected = self._fill(gradients)
        segments = range(len(self.layout.segments))
        rejected = rejected or next(filter(None, map(rounds.problem, segments)), "")
        if not rejected:
            for segment in segments:
                rounds.ready(segment)
        outcome = rounds.finish(mask(present), rejected)
        self._replaced = outcome.kind == "replaced"
        self._averaged = not self._replaced and outcome.total_weight > 0
        if not self._replaced:
            rounds.adopted()
        return self._like(gradients, union(outcome.present, len(self.tensors)) if self._averaged else None)

    def step(self) -> None:
        rounds = self._rounds
        if rounds is None or rounds.alone:
            return
        if self._replaced:
            self._stepped = True
            self._heal(rounds)
            self._stepped = False
        self._companions.stepped()

    def flush(self) -> None:
        return None

    def idle(self) -> Outcome:
        raise ProtocolError("EveryStep cannot take part without the script's own step")

    def refill(self) -> None:
        raise ProtocolError("the contribution of EveryStep is never written over")

    def capture(self) -> Tree:
        return {
            "arrays": [array for _, array in self._surface],
            **self._companions.capture(just_stepped=False),
        }

    def install(self, tree: Tree) -> None:
        given = tree["arrays"]
        if [(a.shape, a.dtype.name) for a in given] != [(t.shape, t.dtype) for t in self.tensors]:
            raise ModelError("Another worker's model has other arrays; run the same script on all workers.")
        for (_, array), value in zip(self._surface, given, strict=True):
            np.copyto(array, value)
        self._companions.install(tree, just_stepped=self._stepped)
        self._averaged = False

    def committed(self) -> list[Array]:
        return [array for _, array in self._surface]

    def digest(self) -> str:
        """Over the parameters before the script's step, and the average it will step with."""
        return digest([*self.committed(), *([self.combined] if self._averaged else [])])

    def _heal(self, rounds: Rounds) -> None:
        rounds.heal()
        self._replaced = False

    def _fill(self, gradients: Any) -> tuple[list[bool], str]:
        """The contribution; says which gradients there are, and why it must not count."""
        self._surface.match(gradients)
        present, rejected = [], ""
        for i, (key, parameter) in enumerate(self._surface):
            part = self.layout.view(self.contribution, i)
            gradient = gradients.get(key) if isinstance(gradients, dict) else gradients[key]
            present.append(gradient is not None)
            if gradient is None:
                part[...] = 0
                continue
            if np.shape(gradient) != parameter.shape:
                raise ModelError(
                    f"The gradient of {key!r} has shape {np.shape(gradient)}, the parameter has "
                    f"{parameter.shape}; give average() a gradient for the whole array."
                )
            np.copyto(part, gradient, casting="same_kind")
            if not rejected and not finite(part.reshape(-1)):
                rejected = f"{blemish(part)} in the gradient of {self.tensors[i].name}"
        return present, rejected

    def _like(self, gradients: Any, present: int | None) -> Any:
        """A container like the one given: of averages where `present` has a bit, of zeros if it is None."""
        averages = {}
        for i, (key, parameter) in enumerate(self._surface):
            if present is None:
                averages[key] = np.zeros_like(parameter)
            elif present >> i & 1:
                averages[key] = self.layout.view(self.combined, i).astype(parameter.dtype, copy=True)
        if isinstance(gradients, dict):
            return averages
        return type(gradients)(averages.get(key) for key, _ in self._surface)
