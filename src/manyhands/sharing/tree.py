"""States on the wire: nested dicts, lists, tuples, plain values and arrays, without any code in them.

A packed tree is::

    magic (8 bytes) │ skeleton length (u64) │ total length (u64) │ skeleton │ arrays

with little-endian lengths. The skeleton is msgpack: plain values stand for themselves, everything
else is a list that begins with a tag (see `_TAGS`). An array in it is a dtype, a shape and an offset
from the start of the buffer; the arrays lie at multiples of 64 bytes. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np

from manyhands.errors import ModelError, WireError
from manyhands.sharing.combine import Array

Tree = Any
"""Nested dict, list, tuple of str, int, float, bool, None, bytes, numpy arrays and scalars, `Foreign`."""

DEPTH = 64
"""How deep a tree may be nested."""

SKELETON_BYTES = 64 << 20
"""How long a skeleton may be: some millions of plain values; arrays do not count."""

_MAGIC = b"mh\x00tree1"
_HEAD = struct.Struct("<8sQQ")
_ALIGN = 64
_DTYPES = frozenset(np.dtype(kind).name for kind in "?bhiqBHIQefdFD")
_TAGS = {
    "dict": "d",
    "Counter": "c",
    "list": "l",
    "tuple": "t",
    "int": "i",
    "scalar": "s",
    "array": "a",
    "foreign": "f",
}


@dataclass(frozen=True, eq=False)
class Foreign:
    """A framework's tensor: the name of its dtype, and its elements or, where numpy lacks it, their bits."""

    array: Array
    dtype: str


class Placed(NamedTuple):
    """An array of a tree: the path to it, what it is in words a file knows, and its offset in a skeleton."""

    path: tuple[str, ...]
    array: Array
    dtype: str
    offset: int


def check(tree: Tree, path: str) -> None:
    """Raise `ModelError`, naming the place, if the tree holds anything that cannot travel."""
    _Packing().put(tree, (path,), 0)


def apart(tree: Tree, path: str = "state") -> tuple[Any, list[Placed]]:
    """A skeleton of plain values, and the arrays of the tree themselves; raises `ModelError` as `pack` does.

    An array in the skeleton is a dtype, a shape and an offset; `together` takes them back from a buffer in
    which each lies at its offset.
    """
    packing = _Packing()
    return packing.put(tree, (path,), 0), packing.arrays


def together(skeleton: Any, arrays: bytes | bytearray | memoryview) -> Tree:
    """The tree of a skeleton; its arrays are views into the buffer. Raises `WireError` if it is malformed."""
    try:
        return _take(skeleton, memoryview(arrays).cast("B"), 0)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"a state is malformed: {error}") from error


def pack(tree: Tree, path: str = "state") -> bytearray:
    """A copy of the tree as one buffer; raises `ModelError` for anything in it that cannot travel.

    `path` names the tree in that error.
    """
    packing = _Packing()
    skeleton = msgspec.msgpack.encode(packing.put(tree, (path,), 0))
    if len(skeleton) > SKELETON_BYTES:
        raise ModelError(
            f"{path} holds {len(skeleton)} bytes of plain values, more than the {SKELETON_BYTES} that "
            "travel; keep long lists of numbers in arrays."
        )
    start = _aligned(_HEAD.size + len(skeleton))
    packed = bytearray(start + packing.length)
    _HEAD.pack_into(packed, 0, _MAGIC, len(skeleton), len(packed))
    packed[_HEAD.size : _HEAD.size + len(skeleton)] = skeleton
    for _, array, _, offset in packing.arrays:
        if array.size:
            place = np.frombuffer(packed, array.dtype.newbyteorder("<"), array.size, start + offset)
            np.copyto(place.reshape(array.shape), array)
    return packed


def unpack(packed: bytes | bytearray | memoryview) -> Tree:
    """The tree in a buffer; its arrays are views into that buffer. Raises `WireError` if it is malformed."""
    view = memoryview(packed).cast("B")
    if len(view) < _HEAD.size:
        raise WireError(f"a packed state of {len(view)} bytes is too short to be one")
    magic, length, total = _HEAD.unpack_from(view)
    if magic != _MAGIC:
        raise WireError("this is not a packed state: it does not begin like one")
    if total != len(view) or length > SKELETON_BYTES or _HEAD.size + length > total:
        raise WireError(f"a packed state of {len(view)} bytes says it has {total}, {length} of them skeleton")
    try:
        skeleton = msgspec.msgpack.decode(view[_HEAD.size : _HEAD.size + length])
        start = min(_aligned(_HEAD.size + length), total)
        return _take(skeleton, view[start:], 0)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"a packed state is malformed: {error}") from error


def arrays_of(packed: bytes | bytearray | memoryview) -> int:
    """Where the arrays of a tree that `pack` has packed begin."""
    length: int = _HEAD.unpack_from(packed)[1]
    return min(_aligned(_HEAD.size + length), len(packed))


def _aligned(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN


class _Packing:
    """One walk over a tree: returns the skeleton, and gathers the arrays on the way."""

    def __init__(self) -> None:
        self.arrays: list[Placed] = []
        self.length = 0

    def put(self, node: Tree, path: tuple[str, ...], depth: int) -> Any:
        if depth > DEPTH:
            raise ModelError(
                f"{_words(path)} is nested more than {DEPTH} deep and cannot travel; flatten it."
            )
        if isinstance(node, Foreign):
            return [_TAGS["foreign"], node.dtype, *self._place(node.array, node.dtype, path)]
        if isinstance(node, np.ndarray):
            return [_TAGS["array"], *self._place(node, node.dtype.name, path)]
        if isinstance(node, np.generic):
            _check_dtype(node.dtype, path)
            return [_TAGS["scalar"], node.dtype.name, node.astype(node.dtype.newbyteorder("<")).tobytes()]
        if isinstance(node, dict):
            tag = _TAGS["Counter" if isinstance(node, Counter) else "dict"]
            pairs = [
                self.put(part, (*path, repr(key)), depth + 1)
                for key, value in node.items()
                for part in (key, value)
            ]
            return [tag, *pairs]
        if type(node) in (list, tuple):
            parts = [self.put(part, (*path, str(i)), depth + 1) for i, part in enumerate(node)]
            return [_TAGS[type(node).__name__], *parts]
        if type(node) is int and not -(2**63) <= node < 2**64:
            return [_TAGS["int"], f"{node:x}"]
        if node is None or type(node) in (str, bytes, int, float, bool):
            return node
        raise ModelError(
            f"{_words(path)} is a {type(node).__module__}.{type(node).__qualname__}, which cannot travel to "
            "another worker; keep numbers, strings, lists, dicts and arrays in the state, and leave "
            "this out of state_dict()."
        )

    def _place(self, array: Array, dtype: str, path: tuple[str, ...]) -> tuple[str, list[int], int]:
        _check_dtype(array.dtype, path)
        offset = self.length
        self.arrays.append(Placed(path, array, dtype, offset))
        self.length += _aligned(array.nbytes)
        return array.dtype.name, list(array.shape), offset


def _words(path: tuple[str, ...]) -> str:
    return path[0] + "".join(f"[{key}]" for key in path[1:])


def _check_dtype(dtype: np.dtype[Any], path: tuple[str, ...]) -> None:
    if dtype.name not in _DTYPES:
        raise ModelError(
            f"{_words(path)} is an array of dtype {dtype}, which cannot travel to another worker; "
            "use a dtype of numbers."
        )


def _take(node: Any, arrays: memoryview, depth: int) -> Tree:
    if not isinstance(node, list):
        if isinstance(node, (dict, msgspec.msgpack.Ext)) or not isinstance(
            node, (str, bytes, int, float, bool, type(None))
        ):
            raise ValueError(f"a {type(node).__name__} stands where a value should")
        return node
    if depth > DEPTH:
        raise ValueError(f"it is nested more than {DEPTH} deep")
    tag, *rest = node
    if tag in (_TAGS["dict"], _TAGS["Counter"]):
        parts = [_take(part, arrays, depth + 1) for part in rest]
        pairs = dict(zip(parts[::2], parts[1::2], strict=True))
        return Counter(pairs) if tag == _TAGS["Counter"] else pairs
    if tag == _TAGS["list"]:
        return [_take(part, arrays, depth + 1) for part in rest]
    if tag == _TAGS["tuple"]:
        return tuple(_take(part, arrays, depth + 1) for part in rest)
    if tag == _TAGS["array"]:
        return _array(arrays, *rest)
    if tag == _TAGS["foreign"]:
        dtype, *place = rest
        if not isinstance(dtype, str):
            raise ValueError("a foreign dtype is no name")
        return Foreign(_array(arrays, *place), dtype)
    if tag == _TAGS["scalar"]:
        dtype, raw = rest
        return np.frombuffer(raw, _dtype(dtype)).reshape(())[()]
    if tag == _TAGS["int"]:
        (digits,) = rest
        return int(digits, 16)
    raise ValueError(f"the tag {tag!r} is not known")


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"the dtype {name!r} is not known")
    return np.dtype(name).newbyteorder("<")


def _array(arrays: memoryview, name: Any, shape: Any, offset: Any) -> Array:
    dtype = _dtype(name)
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in [*shape, offset]):
        raise ValueError(f"the shape {shape!r} or the offset {offset!r} is none")
    size = math.prod(shape)
    if offset % _ALIGN or offset + size * dtype.itemsize > len(arrays):
        raise ValueError(f"an array of shape {shape} and dtype {name} at {offset} lies outside the buffer")
    if not size:
        return np.empty(shape, dtype)
    return np.frombuffer(arrays, dtype, size, offset).reshape(shape)
