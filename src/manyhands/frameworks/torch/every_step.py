"""EveryStep for PyTorch: when backward() returns, the gradients are the pool's average.

A hook on each parameter copies its gradient into the flat vector as soon as autograd has it, and each
segment of the vector goes out as soon as all in it have come, while the rest of backward() runs. At
its end the round is finished, and the average is in `.grad`.

Memory beyond the plain loop: one vector for the average. The gradients of float32 parameters on the
CPU live in the vector of the contribution, which so replaces their own memory. Those on a device are copied
to and fro while it goes on, so a segment goes out when all in it has landed.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from manyhands.core.messages import Tensor
from manyhands.errors import ModelError, ProtocolError
from manyhands.frameworks.companions import Companions
from manyhands.frameworks.digest import digest
from manyhands.frameworks.presence import mask, union
from manyhands.frameworks.torch.leaves import bits, to_tree
from manyhands.frameworks.torch.staging import Mark, landed
from manyhands.frameworks.torch.surface import TorchSurface, install_parameters
from manyhands.sharing.combine import Array, blemish, finite
from manyhands.sharing.layout import Layout
from manyhands.sharing.tree import Tree
from manyhands.worker.driving import Allocate, Outcome, Rounds

_in_python_function = torch.autograd.function.BackwardCFunction.apply.__code__


class Backward:
    """One backward() that shares: what has come, and what has been announced or is, once it has landed.

    `failed` is an earlier one of the same round that ended in an error. What it announced cannot be
    changed any more, so the round goes on with what there is, and is rejected.
    """

    def __init__(self, task: int, parameters: int, parts: list[int], failed: Backward | None) -> None:
        self.tasks = {task}
        self.arrived = bytearray(parameters)
        self.missing = parts
        self.announced: bytearray = bytearray(len(parts)) if failed is None else failed.announced
        self.landing: deque[tuple[int, Mark]] = deque() if failed is None else failed.landing
        self.void = any(self.announced)
        self.rejected = "an earlier backward() of this step ended in an error" if self.void else ""
        self.repeated = False


class EveryStep:
    """The driver of `EveryStep` for a module. `scaled`: a GradScaler skips steps that are not finite."""

    needs_user_step = True
    shares_buffer = False
    trailing = 0

    def __init__(self, surface: TorchSurface, companions: Companions, *, scaled: bool) -> None:
        if surface.sparse:
            raise ModelError(
                f"The gradient of {surface.sparse[0]} is sparse and cannot be averaged; create the embedding "
                "with sparse=False, or use LocalSGD or DiLoCo."
            )
        self.allocate: Allocate = np.zeros
        self._surface, self._companions, self._scaled = surface, companions, scaled
        self._staging = surface.staging
        self._parameters = [p for _, p in surface.named]
        self._rounds: Rounds | None = None
        self._ends: list[Callable[[], None]] = []
        self._lock = threading.Lock()  # autograd runs hooks of several devices in several threads
        self._backward: Backward | None = None
        self._overlap: bool | None = None
        self._quiet = self._accumulated = False
        self._replaced = False
        self._healing = False
        self._averaged = False
        self._spent = False  # the optimizers have stepped with the gradients that there are

    @property
    def layout(self) -> Layout:
        return self._surface.layout

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.layout.tensors

    @cached_property
    def contribution(self) -> Array:
        return self._staging.host(self.allocate(self.layout.elements, self.layout.dtype))

    @cached_property
    def combined(self) -> Array:
        return self._staging.host(self.allocate(self.layout.elements, self.layout.dtype))

    @cached_property
    def _views(self) -> list[torch.Tensor]:
        """Each parameter's place in the contribution; none is a view of another in the eyes of autograd."""
        return [
            torch.from_numpy(self.layout.view(self.contribution, i)) for i in range(len(self._parameters))
        ]

    @cached_property
    def _averages(self) -> list[torch.Tensor]:
        """Each parameter's place in the combined vector."""
        return [torch.from_numpy(self.layout.view(self.combined, i)) for i in range(len(self._parameters))]

    @cached_property
    def _lives_there(self) -> list[bool]:
        """Whether the gradient of each parameter can be its place in the contribution."""
        return [
            p.dtype == view.dtype and p.device == view.device and not self._staging.stages(p)
            for p, view in zip(self._parameters, self._views, strict=True)
        ]

    @cached_property
    def _parts(self) -> list[int]:
        """Of how many tensors each segment holds a part."""
        parts = [0] * len(self.layout.segments)
        for segments in self.layout.touched:
            for segment in segments:
                parts[segment] += 1
        return parts

    def attach(self, rounds: Rounds) -> None:
        self._rounds = rounds
        if rounds.alone:
            return
        self._companions.check()
        self._surface.buffers.agree()
        for i, p in enumerate(self._parameters):
            handle = p.register_post_accumulate_grad_hook(partial(self._arrived, i))  # type: ignore[no-untyped-call]
            self._ends.append(handle.remove)
        end = self._surface.watch(self._moved, self._stepped)
        if end is not None:
            self._ends.append(end)
        if any(map(self._staging.stages, self._parameters)):
            # on the script's thread, where a signal ends the wait for a round: a device's own hears of none
            threads = torch.autograd.set_multithreading_enabled(False)
            self._ends.append(partial(threads.__exit__, None, None, None))

    def detach(self) -> None:
        for end in self._ends:
            end()
        self._ends.clear()
        self._rounds = None
        self._staging.release()

    def no_sync(self) -> AbstractContextManager[None]:
        return self._without_sharing()

    @contextmanager
    def _without_sharing(self) -> Iterator[None]:
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before
            if self._accumulated and self._rounds is not None:
                self._rounds.learned()
            self._accumulated = False

    def average(self, gradients: Any) -> Any:
        """The gradients themselves: backward() has averaged them."""
        return gradients

    def step(self) -> None:
        """Nothing: the optimizer's own step is seen."""

    def flush(self) -> None:
        return None

    def idle(self) -> Outcome:
        raise ProtocolError("EveryStep cannot take part without the script's own step")

    def refill(self) -> None:
        raise ProtocolError("the contribution of EveryStep is never written over")

    def capture(self) -> Tree:
        return {
            "parameters": {name: to_tree(p) for name, p in self._surface.named},
            "rest": self._surface.capture_rest(),
            **self._companions.capture(just_stepped=False),
        }

    def install(self, tree: Tree) -> None:
        install_parameters(self._surface.named, tree["parameters"])
        self._surface.install_rest(tree["rest"])
        self._companions.install(tree, just_stepped=self._healing)
        self._averaged = False

    def committed(self) -> list[Array]:
        return [bits(p) for p in self._parameters if p.device.type == "cpu" and p.is_contiguous()]

    def digest(self) -> str:
        """Over the parameters before the script's step, the average it will step with, and the buffers."""
        average = [self.combined] if self._averaged else []
        return digest([*map(bits, self._on_host()), *average, *self._surface.agreed()])

    def _on_host(self) -> list[torch.Tensor]:
        """The parameters; those of a device by way of the contribution, which no round needs just now."""
        found = [p.detach() for p in self._parameters]
        for i, p in enumerate(found):
            if self._staging.stages(p):
                place = self._views[i].view(-1).view(p.dtype)[: p.numel()].view(p.shape)
                self._staging.copy(place, p)
                found[i] = place
        self._staging.wait()
        return found

    # --- during backward(), on autograd's thread ---------------------------------------------------

    def _arrived(self, i: int, p: torch.Tensor) -> None:
        """The gradient of a parameter is complete, as far as this backward() is concerned."""
        self._spent = False
        if self._quiet or self._rounds is None:
            self._accumulated = True
            return
        with self._lock, torch.no_grad():
            task = torch._C._current_graph_task_id()
            backward = self._backward
            if backward is None or task not in backward.tasks:
                backward = self._begin(self._rounds, task)
            if backward.void or self._replaced:
                return
            if backward.arrived[i]:
                self._came_again(backward, i)
            self._take(i, p)
            if not backward.arrived[i]:
                backward.arrived[i] = 1
                self._count(backward, i)
            while backward.landing and landed(backward.landing[0][1]):
                self._announce(backward, backward.landing.popleft()[0])

    def _begin(self, rounds: Rounds, task: int) -> Backward:
        nested = _within_python_function()
        if nested and self._backward is not None:
            self._backward.tasks.add(task)
            return self._backward
        if nested:
            raise ModelError(
                "backward() began inside a checkpoint with use_reentrant=True, so its end cannot be seen; "
                "pass use_reentrant=False to torch.utils.checkpoint, or use LocalSGD or DiLoCo."
            )
        rounds.learned()
        self._staging.wait()  # one that failed may have left copies on their way
        self._backward = Backward(task, len(self._parameters), self._parts.copy(), self._backward)
        torch.autograd.Variable._execution_engine.queue_callback(self._ended)
        return self._backward

    def _came_again(self, backward: Backward, i: int) -> None:
        """A parameter under two re-entrant checkpoints: no harm, unless its gradient has gone out already."""
        backward.repeated = True
        if any(backward.announced[segment] for segment in self.layout.touched[i]):
            raise ModelError(
                f"The gradient of {self.tensors[i].name} came twice in one backward(), which it did not in "
                "the first; pass use_reentrant=False to torch.utils.checkpoint."
            )

    def _take(self, i: int, p: torch.Tensor) -> None:
        gradient, view = p.grad, self._views[i]
        if gradient is view:
            return
        if gradient is None:
            raise ProtocolError(f"the gradient of {self.tensors[i].name} came and is not there")
        if gradient.layout != torch.strided:
            raise ModelError(
                f"The gradient of {self.tensors[i].name} is sparse and cannot be averaged; make it dense, or "
                "use LocalSGD or DiLoCo."
            )
        self._staging.copy(view, gradient)
        if self._lives_there[i]:
            p.grad = view

    def _count(self, backward: Backward, i: int) -> None:
        for segment in self.layout.touched[i]:
            backward.missing[segment] -= 1
            if not backward.missing[segment] and self._overlap:
                self._land(backward, segment)

    def _land(self, backward: Backward, segment: int) -> None:
        """All of a segment has been copied, or is being: it is announced when that has landed."""
        if not backward.announced[segment]:
            backward.announced[segment] = 1
            backward.landing.append((segment, self._staging.mark()))

    def _announce(self, backward: Backward, segment: int) -> None:
        assert self._rounds is not None
        if not self._scaled and not backward.rejected:
            backward.rejected = self._blemish(segment) or self._rounds.problem(segment)
        if not backward.rejected:
            self._rounds.ready(segment)

    def _blemish(self, segment: int) -> str:
        """What of a segment is not finite, and must not count; "" where all is."""
        a, b = self.layout.segments[segment]
        if finite(self.contribution[a:b]):
            return ""
        for i, tensor in enumerate(self.tensors):
            part = self.layout.view(self.contribution, i)
            if segment in self.layout.touched[i] and not finite(part.reshape(-1)):
                kind = "gradient" if i < len(self._parameters) else "change"
                return f"{blemish(part)} in the {kind} of {tensor.name}"
        raise ProtocolError("a segment is not finite, and all its tensors are")

    def _ended(self) -> None:
        """All gradients of this backward() are here: finish the round."""
        rounds, backward = self._rounds, self._backward
        self._backward = None
        if rounds is None or backward is None:
            return
        with torch.no_grad():
            self._companions.overdue()
            self._surface.check()
            if not self._replaced:
                present = [] if backward.void else self._complete(backward)
                for segment in range(len(self.layout.segments)):
                    self._land(backward, segment)
                while backward.landing:
                    segment, mark = backward.landing.popleft()
                    self._staging.wait(mark)
                    self._announce(backward, segment)
                self._overlap = self._overlap is not False and not backward.repeated
                self._adopt(rounds, rounds.finish(mask(present), backward.rejected))
            elif not self._surface.optimizers:
                self._heal(rounds)
            if self._replaced or not self._averaged:
                self._zero()

    def _complete(self, backward: Backward) -> list[bool]:
        """Fill in what autograd did not reach; returns which tensors have a value."""
        for i, p in enumerate(self._parameters):
            if not backward.arrived[i]:
                if p.grad is None:
                    self._views[i].zero_()
                else:  # of an earlier backward(), under no_sync() perhaps
                    self._take(i, p)
        self._surface.buffers.read(self.layout, self.contribution)
        return [p.grad is not None for p in self._parameters] + [True] * len(self._surface.buffers.tensors)

    def _adopt(self, rounds: Rounds, outcome: Outcome) -> None:
        self._replaced = outcome.kind == "replaced"
        self._averaged = not self._replaced and outcome.total_weight > 0
        if self._averaged:
            self._write_average(union(outcome.present, len(self.tensors)))
            self._surface.buffers.write(self.layout, self.combined)
        else:
            self._surface.buffers.restore()
        if not self._replaced:
            rounds.adopted()

    def _write_average(self, present: int) -> None:
        if any(self._lives_there):
            n = self._surface.parameters
            torch.from_numpy(self.contribution[:n]).copy_(torch.from_numpy(self.combined[:n]))
        for i, p in enumerate(self._parameters):
            if not present >> i & 1:
                p.grad = None
            elif not self._lives_there[i]:
                p.grad = torch.empty_like(p) if p.grad is None else p.grad
                self._staging.copy(p.grad, self._averages[i])
            elif p.grad is not self._views[i]:
                p.grad = self._views[i]
        self._staging.join()

    def _zero(self) -> None:
        """Gradients that move nothing by themselves, of the kind the rest of the loop body expects."""
        self.contribution[: self._surface.parameters] = 0
        for i, p in enumerate(self._parameters):
            if self._lives_there[i]:
                p.grad = self._views[i]
            else:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()

    # --- after the optimizers' step ----------------------------------------------------------------

    def _moved(self) -> None:
        """One that is not the last has stepped; raises `ModelError` if the last had, with these gradients.

        A worker that healed after the last one's step would go on with another model than its donor.
        """
        if self._spent:
            raise ModelError(
                f"Another optimizer stepped after {list(self._surface.optimizers)[-1]}; give share() the "
                "optimizers in the order in which the script steps them."
            )

    def _stepped(self) -> None:
        self._spent = True
        if self._rounds is None:
            return
        if self._replaced:
            self._healing = True
            try:
                self._heal(self._rounds)
            finally:
                self._healing = False
        self._companions.stepped()

    def _heal(self, rounds: Rounds) -> None:
        rounds.heal()
        self._replaced = False


def _within_python_function() -> bool:
    """Whether this runs inside the backward of a Python autograd function, as re-entrant checkpoints are."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _in_python_function:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
