"""Slices through an encoding and back."""

import numpy as np

from manyhands.sharing.encode.chain import Encoding

F4 = np.dtype("float32")


def vector(n: int, seed: int = 0, dtype: np.dtype = F4) -> np.ndarray:
    """Heavy-tailed: Student's t of 3 degrees."""
    return np.random.default_rng(seed).standard_t(3, n).astype(dtype)


def encoded(e: Encoding, x: np.ndarray) -> np.ndarray:
    out = np.full(e.nbytes(len(x), x.dtype), 0xA5, np.uint8)
    e.encode(x, out, (np.zeros_like(x), np.empty_like(x)) if e.feedback else None)
    return out


def decoded(e: Encoding, data: np.ndarray, n: int, dtype: np.dtype) -> np.ndarray:
    out = np.full(n, np.nan, dtype)
    e.decode(data, out)
    return out


def through(e: Encoding, x: np.ndarray) -> np.ndarray:
    return decoded(e, encoded(e, x), len(x), x.dtype)
