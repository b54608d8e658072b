"""Codes of 2 or 4 bits, packed 4 or 2 to a byte."""

from __future__ import annotations

import numpy as np

from manyhands.sharing.encode.stage import Bytes


def nbytes(n: int, bits: int) -> int:
    """How many bytes `n` codes take; `bits` is 2, 4 or 8."""
    return -(-n * bits // 8)


def pack(codes: Bytes, bits: int, out: Bytes) -> None:
    """Write the codes, each below 2 to the power of `bits`, into the `nbytes` of `out`.

    Byte i holds the codes i, i + m, i + 2m, …, from its lowest bits on, where m is the length of `out`: so
    all that is read or written is contiguous.
    """
    m = len(out)
    np.copyto(out, codes[:m])
    for place in range(1, 8 // bits):
        part = codes[place * m : (place + 1) * m]
        out[: len(part)] |= part << (place * bits)


def unpack(data: Bytes, bits: int, n: int) -> Bytes:
    """The `n` codes in `data`."""
    m = len(data)
    codes = np.empty(n, np.uint8)
    for place in range(8 // bits):
        part = codes[place * m : (place + 1) * m]
        np.right_shift(data[: len(part)], place * bits, out=part)
        part &= (1 << bits) - 1
    return codes
