"""A set of places among n, in a number of bytes that depends on nothing but how many there are."""

from __future__ import annotations

import numpy as np

from manyhands.errors import WireError
from manyhands.sharing.combine import Array
from manyhands.sharing.encode.stage import Bytes


def nbytes(k: int, n: int) -> int:
    """How many bytes `k` of `n` places take: 2 + log₂(n/k) bits for each, or one for each of the `n`."""
    low = _low_bits(k, n)
    return _whole(n) if low == 0 else _whole(k * low) + _whole(_unary_bits(k, n, low))


def write(places: Array, n: int, out: Bytes) -> None:
    """Write places, strictly increasing and below `n`, into the `nbytes` of `out`.

    The code of Elias (1974) and Fano (1971): the low bits of each place as they are; its high bits in
    unary, the i-th place (from 0) as a one at i + high. Where it is shorter, one bit for each of the `n`.
    """
    k = len(places)
    low = _low_bits(k, n)
    if low == 0:
        _write_ones(places, out)
        return
    start = _whole(k * low)
    out[:start] = np.packbits((places[:, None] >> np.arange(low)) & 1, bitorder="little")
    _write_ones((places >> low) + np.arange(k), out[start:])


def read(data: Bytes, k: int, n: int) -> Array:
    """The places, int64; `k` is 1 or more.

    Raises `WireError` for any but `k` places, strictly increasing and below `n`.
    """
    low = _low_bits(k, n)
    start = _whole(k * low)
    ones = np.flatnonzero(np.unpackbits(data[start if low else 0 :], bitorder="little"))
    if len(ones) != k:
        raise WireError(f"indices: {len(ones)} of them, expected {k} of {n} values")
    if low == 0:
        places = ones
    else:
        bits = np.unpackbits(data[:start], count=k * low, bitorder="little").reshape(k, low)
        places = ((ones - np.arange(k)) << low) + bits @ (1 << np.arange(low))
    if places[-1] >= n:
        raise WireError(f"index: {places[-1]}, expected one below {n}")
    if (np.diff(places) <= 0).any():
        raise WireError("indices: not strictly increasing")
    return places


def _low_bits(k: int, n: int) -> int:
    """How many bits of each place stand as they are; 0: a bit for each of the `n` is shorter."""
    low = (n // k).bit_length() - 1
    return low if k * low + _unary_bits(k, n, low) < n else 0


def _unary_bits(k: int, n: int, low: int) -> int:
    return k + ((n - 1) >> low)


def _whole(bits: int) -> int:
    return -(-bits // 8)


def _write_ones(places: Array, out: Bytes) -> None:
    bits = np.zeros(8 * len(out), np.uint8)
    bits[places] = 1
    out[:] = np.packbits(bits, bitorder="little")
