"""The model of a checkpoint, without all that goes with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from manyhands.checkpoints.manifest import Manifest
from manyhands.sharing.combine import Array
from manyhands.sharing.tree import Foreign, Tree


def model_of(manifest: Manifest, state: Tree) -> dict[str, Foreign]:
    """The tensors of the model by name, each in its own dtype: parameters, also frozen ones, and buffers.

    Tensors that are one and the same are there under the first of their names.
    """
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
