"""A module's tensors as one flat vector, the way backward() finishes them: last layer first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from manyhands.core.messages import Tensor
from manyhands.errors import ModelError
from manyhands.frameworks.torch.buffers import Buffers
from manyhands.frameworks.torch.cuda import staging_for
from manyhands.frameworks.torch.leaves import dtype_name, tensor_of, to_tree
from manyhands.frameworks.torch.optimizers import Optimizers, check_parameters, watch
from manyhands.sharing.combine import Array
from manyhands.sharing.layout import Layout, Part
from manyhands.sharing.tree import Tree


class TorchSurface:
    """Trainable parameters in reverse order of registration (tied ones once), then the shared buffers.

    Which parameters are trainable is settled here; a parameter may be frozen later, but not thawed.
    Raises `ModelError` for a model that cannot be shared.
    """

    def __init__(self, module: torch.nn.Module, optimizers: Optimizers) -> None:
        named = [(name.replace("_orig_mod.", ""), p) for name, p in module.named_parameters()]
        _refuse_unshareable(module, named)
        check_parameters(optimizers, named)
        self.named = [(name, p) for name, p in reversed(named) if p.requires_grad]
        self.frozen = [(name, p) for name, p in named if not p.requires_grad]
        self.staging = staging_for([*module.parameters(), *module.buffers()])
        self.buffers = Buffers(module, self.staging)
        self.sparse = _sparse(module)
        self.optimizers = optimizers
        tensors = (Tensor(name, tuple(p.shape), dtype_name(p)) for name, p in self.named)
        self.layout = Layout((*tensors, *self.buffers.tensors))
        self.parameters = sum(self.layout.sizes[: len(self.named)])

    def check(self) -> None:
        """Raise `ModelError` if a parameter was thawed: it would silently differ between workers."""
        for name, p in self.frozen:
            if p.requires_grad:
                raise ModelError(
                    f"The parameter {name} was frozen when the model was shared and now is trainable; leave "
                    "share() and enter it again after thawing."
                )

    def host(self, vector: Array) -> Array:
        return self.staging.host(vector)

    def release(self) -> None:
        self.staging.release()

    def read(self, out: Array, a: int = 0, b: int | None = None) -> None:
        self.check()
        b = self.layout.elements if b is None else b
        for part, place in self._parts(out, a, b):
            self.staging.copy(place, self.named[part.tensor][1].detach().reshape(-1)[part.a : part.b])
        if b > self.parameters:
            self.buffers.read(self.layout, out, a)
        self.staging.wait()

    def write(self, vector: Array, a: int = 0, b: int | None = None) -> None:
        b = self.layout.elements if b is None else b
        with torch.no_grad():
            for part, place in self._parts(vector, a, b):
                p = self.named[part.tensor][1]
                flat = p.view(-1) if p.is_contiguous() else p.reshape(-1)
                self.staging.copy(flat[part.a : part.b], place)
                if not p.is_contiguous():
                    self.staging.join()
                    p.copy_(flat.view(p.shape))
                if p.dtype != place.dtype:
                    self.staging.copy(place, flat[part.a : part.b])
            if b > self.parameters:
                self.buffers.write(self.layout, vector, a)
        self.staging.wait()
        vector[max(self.parameters - a, 0) :] = 0

    def _parts(self, vector: Array, a: int, b: int) -> Iterator[tuple[Part, torch.Tensor]]:
        """The parts of parameters in elements [a, b), each with its place in the vector."""
        for part in self.layout.parts(a, min(b, self.parameters)):
            yield part, torch.from_numpy(vector[part.at : part.at + part.b - part.a])

    def watch(self, moved: Callable[[], None], stepped: Callable[[], None]) -> Callable[[], None] | None:
        return watch(self.optimizers, moved, stepped) if self.optimizers else None

    def capture_rest(self) -> dict[str, Tree]:
        return {"frozen": {name: to_tree(p) for name, p in self.frozen}, "buffers": self.buffers.capture()}

    def install_rest(self, rest: Tree) -> None:
        install_parameters(self.frozen, rest["frozen"])
        with torch.no_grad():
            self.buffers.install(rest["buffers"])

    def agreed(self) -> list[Array]:
        return self.buffers.agreed()


def install_parameters(named: list[tuple[str, torch.nn.Parameter]], values: dict[str, Any]) -> None:
    if values.keys() != {name for name, _ in named}:
        raise ModelError("Another worker's model has other parameters; run the same script on all workers.")
    with torch.no_grad():
        for name, p in named:
            given = tensor_of(values[name])
            if given.shape != p.shape:
                raise ModelError(
                    f"The parameter {name} has shape {tuple(p.shape)} here and {tuple(given.shape)} on "
                    "another worker; run the same script on all workers."
                )
            p.copy_(given)


def _refuse_unshareable(module: torch.nn.Module, named: list[tuple[str, torch.nn.Parameter]]) -> None:
    for name, p in named:
        if isinstance(p, torch.nn.parameter.UninitializedParameter):
            raise ModelError(
                f"The parameter {name} has no shape yet; run one batch through the model, then share it."
            )
        if p.is_meta:
            raise ModelError(
                f"The parameter {name} is on the meta device; give it memory, then share the model."
            )
        if p.requires_grad and not p.dtype.is_floating_point:
            raise ModelError(
                f"The parameter {name} is {p.dtype}, which cannot be shared; split it into real parts."
            )
    if not any(p.requires_grad and p.numel() for _, p in named):
        raise ModelError(
            f"The model, a {type(module).__name__}, has no trainable parameter; "
            "share the module that is trained."
        )


def _sparse(module: torch.nn.Module) -> list[str]:
    """Names of the parameters whose gradients are sparse."""
    return [
        f"{prefix}.weight".removeprefix(".").replace("_orig_mod.", "")
        for prefix, part in module.named_modules()
        if isinstance(part, (torch.nn.Embedding, torch.nn.EmbeddingBag))
        and part.sparse
        and part.weight.requires_grad
    ]
