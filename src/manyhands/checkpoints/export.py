"""The model of a checkpoint as a file that other software loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from manyhands.checkpoints.files import spec
from manyhands.checkpoints.manifest import Manifest
from manyhands.errors import ConfigurationError
from manyhands.sharing.combine import Array
from manyhands.sharing.tree import Foreign, Tree

TORCH = (".pt", ".pth")


def export(manifest: Manifest, state: Tree, out: Path) -> int:
    """Write the model's tensors by name to a .safetensors file, or as a torch state_dict to a .pt one.

    Parameters, also frozen ones, and buffers; returns how many. Tensors that are one and the same are there
    under the first of their names. Raises ConfigurationError for another kind of file, or without torch.
    """
    tensors = model_of(manifest, state)
    if out.suffix == ".safetensors":
        kept = {name: np.ascontiguousarray(each.array) for name, each in tensors.items()}
        specs = {name: spec(each.dtype, kept[name]) for name, each in tensors.items()}
        safetensors.serialize_file(specs, str(out), {"manyhands": f"version {manifest.version.number}"})
    elif out.suffix in TORCH:
        _save_for_torch(tensors, out)
    else:
        raise ConfigurationError(f"{out} is of no kind that is known: name it .safetensors, .pt or .pth")
    return len(tensors)


def model_of(manifest: Manifest, state: Tree) -> dict[str, Foreign]:
    """The tensors of the model by name, each in its own dtype."""
    driver: dict[str, Any] = state["driver"]
    names = [tensor.name for tensor in manifest.tensors]
    if "vector" in driver:
        found = _cut(manifest, driver["vector"])
    else:
        found = (
            driver["parameters"]
            if "parameters" in driver
            else dict(zip(names, driver["arrays"], strict=True))
        )
    for rest in (driver.get("rest") or {}).values():
        found |= rest
    return {
        name: each if isinstance(each, Foreign) else Foreign(each, each.dtype.name)
        for name, each in found.items()
    }


def _cut(manifest: Manifest, vector: Array) -> dict[str, Any]:
    """The parts of a flat vector, each as its tensor was."""
    found: dict[str, Any] = {}
    at = 0
    for tensor in manifest.tensors:
        size = int(np.prod(tensor.shape, dtype=np.int64))
        part = vector[at : at + size].reshape(tensor.shape)
        found[tensor.name] = Foreign(_as(part, tensor.dtype), tensor.dtype)
        at += size
    return found


def _as(values: Array, dtype: str) -> Array:
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even


def _save_for_torch(tensors: dict[str, Foreign], out: Path) -> None:
    try:
        import torch
    except ImportError:
        raise ConfigurationError(
            f"{out} needs PyTorch, which is not installed here: pip install manyhands[torch], or export to "
            ".safetensors"
        ) from None
    from manyhands.frameworks.torch.leaves import tensor_of

    torch.save({name: tensor_of(each) for name, each in tensors.items()}, out)
