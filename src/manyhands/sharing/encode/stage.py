"""What one stage of an encoding does: it writes bytes of its own, and leaves values to the next."""

from __future__ import annotations

from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

from manyhands.sharing.combine import Array

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
"""A flat, contiguous array of uint8."""

PIECE: Final = 1 << 18
"""Elements encoded at a time: a slice is a row of pieces, each encoded for itself, the last one shorter.

Part of the format. In pieces of 16 Ki, 64 Ki, 256 Ki and 1 Mi elements, float32 is quantized to 4 bits at
0.9, 2.6, 3.1 and 3.1 GB/s: each of some ten calls for a piece costs a hand-over of the GIL, and memory beyond
the caches gains nothing.
"""


@runtime_checkable
class Stage(Protocol):
    """One step of an encoding: a frozen value whose repr is how it is written in a strategy.

    A stage sees one piece: a flat array of 1 to `PIECE` elements, float32 or float64, all finite.
    What it writes has a length that depends on nothing but the number of elements and their dtype.
    """

    @property
    def limit(self) -> float:
        """All values below it in size can be encoded."""

    def nbytes(self, n: int, dtype: np.dtype[Any]) -> int:
        """How many bytes the stage itself writes for `n` values."""

    def kept(self, n: int) -> int:
        """How many of `n` values it leaves to the next stage; 0 for one that writes all of them."""

    def combined(self, contributions: int) -> Stage:
        """The stage for what so many encoded contributions are combined to."""

    def encode(self, x: Array, out: Bytes) -> Array:
        """Write `nbytes` into `out`; return the `kept` values, of the dtype of `x`, which is only read.

        Raises `Unencodable`.
        """

    def decode(self, data: Bytes, kept: Array, out: Array) -> None:
        """Undo `encode`: write all of `out`, in its dtype. Raises `WireError` for bytes that cannot be."""
