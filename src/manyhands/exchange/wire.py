"""What a message between members looks like on the wire: a checked header of 76 bytes, then raw bytes.

A slice that the receiver can read in the memory of the sender is not sent: the header says where it lies.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from enum import IntEnum
from struct import Struct
from struct import error as StructError
from typing import Final

import msgspec
import xxhash

from manyhands.errors import WireError
from manyhands.sharing.parts import PART_BYTES

MAGIC: Final = b"MHX2"
KIB: Final = 1024
MIB: Final = 1024 * KIB


class Kind(IntEnum):
    """What the payload is."""

    CONTRIBUTION = 1
    """One slice of one segment of a member's proposal, for the member that reduces it."""
    COMBINED = 2
    """One slice of one segment of the next version."""
    WHOLE = 3
    """A whole segment of a combined vector, for a member that rolls forward."""
    MESSAGE = 4
    """One `core.messages.ToPeer`, encoded with msgpack."""
    SNAPSHOT = 5
    """One part of a state: `base` is its version, `segment` the part's number in the sender's copy."""


class DType(IntEnum):
    """What the payload is made of; numbers are little-endian."""

    BYTES = 0
    FLOAT32 = 1
    FLOAT64 = 2

    @property
    def itemsize(self) -> int:
        return _ITEM_SIZES[self]


SLICES: Final = frozenset({Kind.CONTRIBUTION, Kind.COMBINED, Kind.WHOLE})
LIMITS: Final[Mapping[Kind, int]] = {
    Kind.CONTRIBUTION: 64 * MIB,
    Kind.COMBINED: 64 * MIB,
    Kind.WHOLE: 64 * MIB,
    Kind.MESSAGE: 16 * MIB,
    Kind.SNAPSHOT: PART_BYTES,
}
"""The largest payload of each kind, in bytes, where the caller gives no limits of its own."""

_ITEM_SIZES: Final = {DType.BYTES: 1, DType.FLOAT32: 4, DType.FLOAT64: 8}
# magic, kind, dtype, slice, run, view, segment, base, subset, weight, length
_BODY: Final = Struct("<4sBBHQIIQQdQ")
_PAYLOAD: Final = Struct("<QQ")  # its checksum, and where it lies
_GUARD: Final = Struct("<I")
HEADER_BYTES: Final = _BODY.size + _PAYLOAD.size + _GUARD.size
_KINDS: Final = {int(kind): kind for kind in Kind}
_DTYPES: Final = {int(dtype): dtype for dtype in DType}


class Header(msgspec.Struct, frozen=True, gc=False):
    """What a message is about. `length` (bytes) and `checksum` (xxh3_64) belong to the payload.

    A sender may leave both at zero: they are taken from the payload when the message goes out. `lies_at`
    is how far into the sender's memory the payload begins, plus one; 0 for one that follows the header,
    which alone is hashed.
    `slice`, `segment`, `view`, `base` and `subset` are unsigned of 16, 32, 32, 64 and 64 bits;
    `weight` is the number of samples behind a contribution.
    """

    kind: Kind
    view: int
    base: int = 0
    segment: int = 0
    slice: int = 0
    dtype: DType = DType.BYTES
    weight: float = 0.0
    subset: int = 0
    length: int = 0
    checksum: int = 0
    lies_at: int = 0


def run_hash(run: str) -> int:
    """The run's id as it stands in every header."""
    return xxhash.xxh64_intdigest(run.encode())


def payload_hash(payload: bytes | bytearray | memoryview) -> int:
    """The checksum of a payload (xxh3_64)."""
    return xxhash.xxh3_64_intdigest(payload)


def pack(header: Header, run: int) -> bytes:
    """The header's bytes; `run` comes from `run_hash`. Raises WireError if a field does not fit."""
    return seal(pack_body(header, run, header.length), header.checksum, header.lies_at)


def pack_body(header: Header, run: int, length: int) -> bytes:
    """All of the header up to the payload's checksum. Raises WireError if a field does not fit."""
    if length % header.dtype.itemsize:
        raise WireError(_not_whole(length, header.dtype))
    try:
        return _BODY.pack(
            MAGIC,
            header.kind,
            header.dtype,
            header.slice,
            run,
            header.view,
            header.segment,
            header.base,
            header.subset,
            header.weight,
            length,
        )
    except StructError as error:
        raise WireError(f"{header} cannot be sent: {error}") from error


def seal(body: bytes, checksum: int, lies_at: int = 0) -> bytes:
    """The whole header: the body, the payload's checksum and place, and the header's own over all of it."""
    body += _PAYLOAD.pack(checksum, lies_at)
    return body + _GUARD.pack(zlib.crc32(body))


def unpack(data: bytes | bytearray | memoryview, run: int, limits: Mapping[Kind, int] = LIMITS) -> Header:
    """Reads and checks a header of exactly `HEADER_BYTES`.

    Raises WireError, naming field, value and what was expected: wrong magic or header checksum,
    another run, an unknown kind or dtype, a length that is no whole number of items or is over the
    limit of its kind (`limits`, in bytes by kind), a weight that is negative or not finite.
    """
    if len(data) != HEADER_BYTES:
        raise WireError(f"header: {len(data)} bytes, expected {HEADER_BYTES}")
    magic, kind, dtype, slice_, its_run, view, segment, base, subset, weight, length = _BODY.unpack_from(data)
    if magic != MAGIC:
        raise WireError(f"magic: {magic!r}, expected {MAGIC!r}; this is no manyhands exchange of this format")
    (guard,) = _GUARD.unpack_from(data, HEADER_BYTES - _GUARD.size)
    expected = zlib.crc32(memoryview(data)[: HEADER_BYTES - _GUARD.size])
    if guard != expected:
        raise WireError(
            f"header checksum: {guard:#010x}, expected {expected:#010x}; it was damaged on the way"
        )
    if its_run != run:
        raise WireError(f"run: {its_run:#018x}, expected {run:#018x}; the sender belongs to another run")
    if kind not in _KINDS:
        raise WireError(f"kind: {kind}, expected one of {_named(Kind)}")
    if dtype not in _DTYPES:
        raise WireError(f"dtype: {dtype}, expected one of {_named(DType)}")
    known = _KINDS[kind]
    if length > limits[known]:
        raise WireError(f"length: {length} bytes, expected at most {limits[known]} for {known.name}")
    if length % _DTYPES[dtype].itemsize:
        raise WireError(_not_whole(length, _DTYPES[dtype]))
    if not 0 <= weight < math.inf:
        raise WireError(f"weight: {weight}, expected a finite number of samples")
    checksum, lies_at = _PAYLOAD.unpack_from(data, _BODY.size)
    return Header(
        kind=known,
        view=view,
        base=base,
        segment=segment,
        slice=slice_,
        dtype=_DTYPES[dtype],
        weight=weight,
        subset=subset,
        length=length,
        checksum=checksum,
        lies_at=lies_at,
    )


def _not_whole(length: int, dtype: DType) -> str:
    return f"length: {length} bytes, expected a multiple of {dtype.itemsize} for {dtype.name}"


def _named(table: type[Kind] | type[DType]) -> str:
    return ", ".join(f"{entry.value} ({entry.name})" for entry in table)
