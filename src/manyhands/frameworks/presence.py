"""Which shared tensors a contribution holds a value for: one bit each, little-endian.

An empty mask means all of them, which is the usual case and costs nothing on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence


def mask(present: Sequence[bool | int]) -> bytes:
    if all(present):
        return b""
    return sum(1 << i for i, bit in enumerate(present) if bit).to_bytes(-(-len(present) // 8), "little")


def union(masks: Sequence[bytes], tensors: int) -> int:
    """The tensors that any member gave a value for, as bits; without any mask none."""
    everything = (1 << tensors) - 1
    bits = 0
    for one in masks:
        bits |= int.from_bytes(one, "little") if one else everything
    return bits & everything
