"""Stages composed to one encoding of a slice, and undone in reverse; what they lose is fed back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from manyhands.errors import ProtocolError, StrategyError, Unencodable, WireError
from manyhands.sharing.combine import Array, blemish, finite
from manyhands.sharing.encode.stage import PIECE, Bytes, Stage


@dataclass(frozen=True)
class ErrorFeedback:
    """Add to each contribution what the encoding lost of those before: x′ = x + decay·e, e′ = x′ − sent.

    Seide et al. 2014; with `decay` below 1, SparseLoCo (arXiv 2508.15706, there 0.95). The residual e
    is the caller's, see `Encoding.encode`.
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        decay = self.decay
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay <= 1:
            raise StrategyError(
                f"ErrorFeedback: decay={decay!r} must be a number above 0, up to 1; 1.0 forgets nothing."
            )

    def __repr__(self) -> str:
        return f"ErrorFeedback({self.decay})"


@dataclass(frozen=True)
class _Plain:
    """The values as they are: what is left when no stage has written them."""

    limit = math.inf

    def nbytes(self, n: int, dtype: np.dtype[Any]) -> int:
        return n * dtype.itemsize

    def kept(self, n: int) -> int:  # noqa: ARG002
        return 0

    def combined(self, contributions: int) -> _Plain:  # noqa: ARG002
        return self

    def encode(self, x: Array, out: Bytes) -> Array:
        np.copyto(out.view(x.dtype), x)
        return x[:0]

    def decode(self, data: Bytes, kept: Array, out: Array) -> None:  # noqa: ARG002
        np.copyto(out, data.view(out.dtype))
        if not finite(out):
            raise WireError(f"an encoded slice holds {blemish(out)} as a value")


@dataclass(frozen=True)
class Encoding:
    """A two-sided encoding of one slice: what `chain` makes. Its repr is how it is written.

    A slice is a flat float32 or float64 array of any length. Each of its pieces (`PIECE` elements,
    counted from the start of the slice) is encoded for itself, one behind the other, so a slice
    cut elsewhere has other bytes. Nothing of a slice's size is allocated. Numbers are little-endian, like
    all slices on the wire. The same bytes decode to the same bits on every machine; the same slice is
    encoded to the same bytes by every process on machines of one kind.
    """

    stages: tuple[Stage, ...] = ()
    feedback: ErrorFeedback | None = None

    def __repr__(self) -> str:
        parts = (*((self.feedback,) if self.feedback else ()), *self.stages)
        return f"chain({', '.join(map(repr, parts))})"

    def nbytes(self, n: int, dtype: np.dtype[Any]) -> int:
        """How many bytes a slice of `n` elements of `dtype` is encoded to, whatever it holds."""
        pieces, rest = divmod(n, PIECE)
        return pieces * self._nbytes(PIECE, dtype) + self._nbytes(rest, dtype)

    def encode(self, x: Array, out: Bytes, residual: tuple[Array, Array] | None = None) -> None:
        """Write the encoded slice into `out`, which has `nbytes` elements.

        `residual` goes with an `ErrorFeedback`, and only with it: the one to read, as of the version the
        contribution is based on, and the one to write, to be kept when the round commits and thrown
        away when it aborts. Both have the length and dtype of `x`; the second overlaps nothing
        else. Raises `Unencodable` for a value that is not finite or that a stage cannot carry; what was
        written then means nothing.
        """
        self._check_slice(x)
        self._check_room(x, out)
        self._check_residual(x, residual)
        for a, b, at, end in self._pieces(len(x), x.dtype):
            if residual is None:
                self._encode(x[a:b], out[at:end])
            else:
                old, new = residual
                self._encode_and_keep(x[a:b], out[at:end], old[a:b], new[a:b])

    def decode(self, data: Bytes, out: Array) -> None:
        """Write what an encoded slice stands for into `out`, of the slice's length and dtype.

        Raises `WireError` for bytes of another length, and for any that `encode` never writes and that
        would decode to something else than finite numbers; what was written then means nothing.
        """
        self._check_slice(out)
        expected = self.nbytes(len(out), out.dtype)
        if len(data) != expected:
            raise WireError(
                f"an encoded slice of {len(out)} {out.dtype} has {len(data)} bytes, expected {expected} for "
                f"{self}"
            )
        for a, b, at, end in self._pieces(len(out), out.dtype):
            _undo((*self.stages, _Plain()), data[at:end], out[a:b])

    @property
    def limit(self) -> float:
        """All values below it in size can be encoded."""
        return min((stage.limit for stage in self.stages), default=math.inf)

    def problem(self, x: Array) -> str:
        """Why a finite slice cannot be encoded, without a residual; "" where it can."""
        if math.isinf(self.limit):
            return ""
        for a in range(0, len(x), PIECE):
            piece = x[a : a + PIECE]
            greatest = max(float(piece.max()), -float(piece.min()))
            if greatest >= self.limit:
                return f"{self} cannot carry {greatest:.6g}: it must be below {self.limit:g}"
        return ""

    def nearest(self, x: Array) -> Array:
        """The values nearest to these that can be encoded; 0 for NaN."""
        most = np.nextafter(x.dtype.type(self.limit), x.dtype.type(0))
        return np.where(np.isnan(x), x.dtype.type(0), x).clip(-most, most)

    def combined(self, contributions: int) -> Encoding:
        """The encoding of what so many encoded contributions are combined to.

        It keeps every element that any of them kept. Who combines them has a residual of its own
        (arXiv 1905.05957).
        """
        return Encoding(tuple(stage.combined(contributions) for stage in self.stages), self.feedback)

    def _nbytes(self, n: int, dtype: np.dtype[Any]) -> int:
        total = 0
        for stage in (*self.stages, _Plain()):
            total += stage.nbytes(n, dtype)
            n = stage.kept(n)
        return total

    def _pieces(self, n: int, dtype: np.dtype[Any]) -> Iterator[tuple[int, int, int, int]]:
        """For each piece, its elements [a, b) and its bytes [at, end)."""
        at = 0
        for a in range(0, n, PIECE):
            b = min(a + PIECE, n)
            end = at + self._nbytes(b - a, dtype)
            yield a, b, at, end
            at = end

    def _encode(self, x: Array, out: Bytes) -> None:
        if not finite(x):
            raise Unencodable(f"{self} cannot carry {blemish(x)}")
        at = 0
        for stage in (*self.stages, _Plain()):
            end = at + stage.nbytes(len(x), x.dtype)
            x = stage.encode(x, out[at:end])
            at = end

    def _encode_and_keep(self, x: Array, out: Bytes, old: Array, new: Array) -> None:
        assert self.feedback is not None
        with np.errstate(over="ignore"):
            np.multiply(old, old.dtype.type(self.feedback.decay), out=new)
            np.add(new, x, out=new)
        self._encode(new, out)
        sent = np.empty_like(new)
        _undo((*self.stages, _Plain()), out, sent)
        np.subtract(new, sent, out=new)

    def _check_slice(self, x: Array) -> None:
        if x.dtype not in (np.float32, np.float64) or x.ndim != 1:
            raise ProtocolError(f"{self} is for flat float32 or float64, not {x.dtype} of shape {x.shape}")

    def _check_room(self, x: Array, out: Bytes) -> None:
        if out.dtype != np.uint8 or len(out) != self.nbytes(len(x), x.dtype):
            raise ProtocolError(
                f"{self} of {len(x)} {x.dtype} takes {self.nbytes(len(x), x.dtype)} bytes, not {len(out)} of "
                f"{out.dtype}"
            )

    def _check_residual(self, x: Array, residual: tuple[Array, Array] | None) -> None:
        if (residual is None) != (self.feedback is None):
            raise ProtocolError(f"{self} came {'without' if residual is None else 'with'} a residual")
        if residual and any(e.shape != x.shape or e.dtype != x.dtype for e in residual):
            raise ProtocolError(f"the residuals of {len(x)} {x.dtype} must be of that length and dtype too")


def chain(*parts: Stage | ErrorFeedback) -> Encoding:
    """Compose an encoding: `chain(ErrorFeedback(0.95), TopK(1 / 64), Quantize(2))`.

    Each stage takes what the one before left; values that none has written travel as they are, so
    `chain()` is the slice itself. `ErrorFeedback`, where wanted, comes first, and what writes all
    values (`Cast`, `Quantize`) last. Raises `StrategyError`.
    """
    for before, part in enumerate(parts):
        if isinstance(part, Encoding | tuple | list):
            raise StrategyError(f"chain: {part!r} is a chain already, or a list; give its parts themselves.")
        if isinstance(part, type):
            raise StrategyError(f"chain: {part.__name__} is a class; give an object, as in Quantize(8).")
        if isinstance(part, ErrorFeedback):
            if before:
                raise StrategyError(f"chain: {part} must come first, and once.")
        elif not isinstance(part, Stage):
            raise StrategyError(
                f"chain: {part!r} is not known; use ErrorFeedback(), TopK(density), Quantize(bits) or "
                "Cast(dtype)."
            )
        elif part.kept(PIECE) == 0 and before < len(parts) - 1:
            after = parts[before + 1]
            if isinstance(after, ErrorFeedback):
                raise StrategyError(f"chain: {after} must come first, and once.")
            remedy = f"take one of them, or put {part} last" if after.kept(PIECE) else "take one of them"
            raise StrategyError(f"chain: {part} leaves nothing to {after}; {remedy}.")
    feedback = parts[0] if parts and isinstance(parts[0], ErrorFeedback) else None
    return Encoding(tuple(part for part in parts if not isinstance(part, ErrorFeedback)), feedback)


def _undo(stages: tuple[Stage, ...], data: Bytes, out: Array) -> None:
    stage, *rest = stages
    own = stage.nbytes(len(out), out.dtype)
    kept = np.empty(stage.kept(len(out)), out.dtype)
    if rest:
        _undo(tuple(rest), data[own:], kept)
    stage.decode(data[:own], kept, out)
