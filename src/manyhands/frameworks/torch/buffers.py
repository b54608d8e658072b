"""Buffers (the statistics of BatchNorm and the like): shared as what changed since the last version.

A change can be averaged for any kind of number: a statistic moves by the mean change, a counter by the
mean change rounded to a whole, a constant does not move at all and so never drifts.
"""

from __future__ import annotations

import torch

from manyhands.core.messages import Tensor
from manyhands.errors import ModelError
from manyhands.frameworks.torch.leaves import bits, dtype_name, tensor_of, to_tree
from manyhands.frameworks.torch.staging import Staging
from manyhands.sharing.combine import Array
from manyhands.sharing.layout import Layout
from manyhands.sharing.tree import Foreign, Tree


class Buffers:
    """The persistent buffers of a module. Others can be computed again, and are left alone.

    Complex buffers and those with an infinity or NaN in them (a mask, say) have no mean change: they
    travel to a joiner, but are not shared.
    """

    def __init__(self, module: torch.nn.Module, staging: Staging) -> None:
        self._staging = staging
        found: dict[int, tuple[str, torch.nn.Module, str]] = {}
        for prefix, owner in module.named_modules():
            for name, buffer in owner._buffers.items():
                if buffer is not None and name not in owner._non_persistent_buffers_set:
                    path = f"{prefix}.{name}" if prefix else name
                    found.setdefault(id(buffer), (path.replace("_orig_mod.", ""), owner, name))
        self._all = [(path, owner, name) for path, owner, name in found.values()]
        self._shared = [(path, owner, name) for path, owner, name in self._all if _moves(_get(owner, name))]
        self.tensors = tuple(
            Tensor(path, tuple(_get(owner, name).shape), dtype_name(_get(owner, name)))
            for path, owner, name in self._shared
        )
        self._agreed: list[torch.Tensor] = []
        self.agree()

    def agree(self) -> None:
        """What the buffers hold now is the same everywhere."""
        self._agreed = [_get(owner, name).detach().clone() for _, owner, name in self._shared]

    def agreed(self) -> list[Array]:
        return [bits(tensor) for tensor in self._agreed]

    def read(self, layout: Layout, out: Array, origin: int = 0) -> None:
        """Copy each buffer's change into its place in a flat vector that begins with element `origin`."""
        for place, agreed, (_, owner, name) in self._places(layout, out, origin):
            buffer = _get(owner, name).detach()
            dtype = place.dtype if buffer.dtype.is_floating_point else torch.int64
            self._staging.copy(place, buffer.to(dtype) - agreed.to(buffer.device, dtype))

    def write(self, layout: Layout, vector: Array, origin: int = 0) -> None:
        """Set each buffer to what was agreed plus the change in the flat vector; so it is agreed now."""
        places = self._places(layout, vector, origin)
        changes = [self._staging.on(agreed.device, place) for place, agreed, _ in places]
        self._staging.join()
        for change, agreed in zip(changes, self._agreed, strict=True):
            if agreed.dtype.is_floating_point:
                agreed.copy_(change.add(agreed.to(change)))
            else:
                agreed.copy_(agreed.to(torch.int64) + change.round().to(torch.int64))
        self.restore()

    def restore(self) -> None:
        """Set each buffer to what was agreed."""
        for agreed, (_, owner, name) in zip(self._agreed, self._shared, strict=True):
            # .data: a graph that is kept for a second backward() may hold the buffer, and must not mind
            _get(owner, name).data.copy_(agreed)

    def capture(self) -> Tree:
        """All persistent buffers by name: the agreed values of the shared ones."""
        values = {path: to_tree(_get(owner, name)) for path, owner, name in self._all}
        for agreed, (path, _, _) in zip(self._agreed, self._shared, strict=True):
            values[path] = to_tree(agreed)
        return values

    def install(self, values: dict[str, Foreign]) -> None:
        if values.keys() != {path for path, _, _ in self._all}:
            raise ModelError("Another worker's model has other buffers; run the same script on all workers.")
        for path, owner, name in self._all:
            _get(owner, name).data.copy_(tensor_of(values[path]))
        self.agree()

    def _places(
        self, layout: Layout, vector: Array, origin: int
    ) -> list[tuple[torch.Tensor, torch.Tensor, tuple[str, torch.nn.Module, str]]]:
        first = len(layout.tensors) - len(self._shared)
        return [
            (torch.from_numpy(layout.view(vector, first + i, origin)), agreed, where)
            for i, (agreed, where) in enumerate(zip(self._agreed, self._shared, strict=True))
        ]


def _get(owner: torch.nn.Module, name: str) -> torch.Tensor:
    """Looked up anew each time: a script may rebind a buffer."""
    buffer = owner._buffers[name]
    if buffer is None:
        raise ModelError(
            f"The buffer {name} of a {type(owner).__name__} was removed while the model was shared."
        )
    return buffer


def _moves(buffer: torch.Tensor) -> bool:
    if buffer.dtype.is_complex:
        return False
    return not buffer.dtype.is_floating_point or bool(torch.isfinite(buffer.float()).all())
