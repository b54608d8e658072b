"""A state as two files that outlive this software: its arrays in safetensors, everything else in JSON."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors

from manyhands.errors import CheckpointError, WireError
from manyhands.sharing import tree
from manyhands.sharing.combine import Array
from manyhands.sharing.tree import Foreign, Placed, Tree

_FLOATS = {"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "bfloat16"}
_KNOWN = _FLOATS | {np.dtype(kind).name for kind in "?bhiqBHIQefdF"}
"""What safetensors has a name for; anything else is kept as its bytes."""


class Plain(msgspec.Struct, frozen=True):
    """The JSON file: the tree without its arrays, and where each of these belongs, by name."""

    skeleton: Any
    arrays: dict[str, int]
    length: int


def take_apart(state: Tree) -> tuple[bytes, bytes]:
    """The two files of a state, safetensors and JSON; copies, so that the state may change afterwards.

    Raises `ModelError` for anything in it that cannot be kept.
    """
    skeleton, arrays = tree.apart(state)
    names = _names(arrays)
    kept = {name: _whole(placed.array) for name, placed in zip(names, arrays, strict=True)}
    specs = {name: _spec(placed.dtype, kept[name]) for name, placed in zip(names, arrays, strict=True)}
    length = max((placed.offset + placed.array.nbytes for placed in arrays), default=0)
    plain = Plain(_written(skeleton), {n: p.offset for n, p in zip(names, arrays, strict=True)}, length)
    return safetensors.serialize(specs), msgspec.json.encode(plain)


def put_together(tensors: bytes, plain: bytes) -> Tree:
    """The state of two files. Raises `CheckpointError` for files that do not fit each other."""
    try:
        read = msgspec.json.decode(plain, type=Plain)
        found = safetensors.deserialize(tensors)  # type: ignore[no-untyped-call]
        if {name for name, _ in found} != read.arrays.keys():
            raise CheckpointError("the arrays of a state are not those that it is made of")
        packed = np.zeros(max(read.length, 0), np.uint8)
        for name, tensor in found:
            data, offset = np.frombuffer(tensor["data"], np.uint8), read.arrays[name]
            packed[offset : offset + len(data)] = data
        return tree.together(_read(read.skeleton), packed.data)
    except (msgspec.MsgspecError, safetensors.SafetensorError, WireError, ValueError, KeyError) as error:
        raise CheckpointError(f"a state cannot be read: {error}") from error


def write_tensors(tensors: Mapping[str, Foreign], path: Path) -> None:
    """A safetensors file of these alone, for other software."""
    kept = {name: _whole(each.array) for name, each in tensors.items()}
    safetensors.serialize_file({name: _spec(tensors[name].dtype, kept[name]) for name in kept}, str(path))


def _whole(array: Array) -> Array:
    """In one piece, and of the same shape also where that is none."""
    return np.ascontiguousarray(array).reshape(array.shape)


def _names(arrays: list[Placed]) -> list[str]:
    """Readable ones: the keys on the way to each array, and a number where two would be the same."""
    names: list[str] = []
    taken: set[str] = set()
    for placed in arrays:
        name = base = ".".join(key.strip("'\"") for key in placed.path[1:]) or placed.path[0]
        again = 1
        while name in taken:
            again += 1
            name = f"{base}~{again}"
        taken.add(name)
        names.append(name)
    return names


def _spec(dtype: str, array: Array) -> safetensors.TensorSpec:
    """What safetensors is told of an array, which must be contiguous and stay until it is written."""
    known = dtype in _KNOWN
    return safetensors.TensorSpec(
        dtype=dtype if known else "uint8",
        shape=list(array.shape) if known else [array.nbytes],
        data_ptr=array.__array_interface__["data"][0],
        data_len=array.nbytes,
    )


def _written(node: Any) -> Any:
    """A skeleton as JSON can hold it: bytes and floats that are no numbers as objects."""
    if isinstance(node, list):
        return [_written(part) for part in node]
    if isinstance(node, bytes):
        return {"bytes": base64.b64encode(node).decode()}
    if isinstance(node, float) and not math.isfinite(node):
        return {"float": repr(node)}
    return node


def _read(node: Any) -> Any:
    if isinstance(node, list):
        return [_read(part) for part in node]
    if isinstance(node, dict):
        ((kind, text),) = node.items()
        return base64.b64decode(text, validate=True) if kind == "bytes" else float(text)
    return node
