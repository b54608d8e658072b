"""Tensors as arrays and back: bit for bit, also for dtypes that numpy lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from manyhands.frameworks.companions import own
from manyhands.sharing.combine import Array
from manyhands.sharing.tree import Foreign

_BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def dtype_name(tensor: torch.Tensor) -> str:
    """As "float32" or "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")


def bits(tensor: torch.Tensor) -> Array:
    """The elements as an array, as unsigned integers if numpy lacks the dtype; a view if possible."""
    tensor = tensor.detach().cpu().contiguous()
    if not hasattr(np, dtype_name(tensor)):
        tensor = tensor.view(_BITS[tensor.element_size()])
    array: Array = tensor.numpy()
    return array


def tensor_of(foreign: Foreign) -> torch.Tensor:
    """A new tensor of its own memory."""
    return torch.from_numpy(foreign.array.copy()).view(getattr(torch, foreign.dtype))


def to_tree(leaf: Any) -> Any:
    return Foreign(bits(leaf), dtype_name(leaf)) if isinstance(leaf, torch.Tensor) else leaf


def from_tree(leaf: Any) -> Any:
    return tensor_of(leaf) if isinstance(leaf, Foreign) else own(leaf)
