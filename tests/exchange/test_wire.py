from __future__ import annotations

import math
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands.errors import WireError
from manyhands.exchange import wire
from manyhands.exchange.wire import HEADER_BYTES, DType, Header, Kind

RUN = wire.run_hash("run-1")
KIND_AT, DTYPE_AT, WEIGHT_AT = 4, 5, 40
LIMITS = dict.fromkeys(Kind, 2**64 - 1)


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


headers = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    view=unsigned(32),
    base=unsigned(64),
    segment=unsigned(32),
    slice=unsigned(16),
    dtype=st.sampled_from(DType),
    weight=st.floats(min_value=0.0, allow_infinity=False),
    subset=unsigned(64),
    length=unsigned(60).map(lambda items: items * 8),
    checksum=unsigned(64),
)


def resealed(data: bytes, at: int, value: bytes) -> bytes:
    """The header with other bytes at one place, and the checksum that belongs to them."""
    body = data[:at] + value + data[at + len(value) : -4]
    return body + struct.pack("<I", zlib.crc32(body))


@given(headers)
def test_every_header_comes_back_as_it_was_packed(header: Header) -> None:
    data = wire.pack(header, RUN)
    assert len(data) == HEADER_BYTES <= 96
    assert wire.unpack(data, RUN, LIMITS) == header


@given(headers, st.integers(1, 255))
def test_a_change_of_any_one_byte_of_a_header_is_noticed(header: Header, change: int) -> None:
    data = wire.pack(header, RUN)
    for at in range(HEADER_BYTES):
        damaged = bytearray(data)
        damaged[at] ^= change
        with pytest.raises(WireError):
            wire.unpack(damaged, RUN, LIMITS)


@given(st.binary(max_size=2 * HEADER_BYTES))
def test_bytes_that_are_no_header_raise_nothing_but_wire_errors(data: bytes) -> None:
    with pytest.raises(WireError):
        wire.unpack(data, RUN)


def test_the_layout_is_fixed_and_little_endian() -> None:
    header = Header(Kind.COMBINED, 1, 2, 3, 4, DType.FLOAT32, 5.0, 6, 8, 9, 10)
    expected = b"MHX2" + bytes([2, 1]) + struct.pack("<HQIIQQdQQQ", 4, RUN, 1, 3, 2, 6, 5.0, 8, 9, 10)
    assert wire.pack(header, RUN) == expected + struct.pack("<I", zlib.crc32(expected))


GOOD = wire.pack(Header(Kind.CONTRIBUTION, 1, dtype=DType.FLOAT64, length=16), RUN)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"HTTP" + GOOD[4:], "magic: b'HTTP', expected b'MHX2'"),
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "header checksum: 0x"),
        (
            wire.pack(Header(Kind.MESSAGE, 1), wire.run_hash("run-2")),
            f"run: {wire.run_hash('run-2'):#018x}, exp",
        ),
        (resealed(GOOD, KIND_AT, b"\x09"), "kind: 9, expected one of 1 (CONTRIBUTION), 2 (COMBINED)"),
        (resealed(GOOD, DTYPE_AT, b"\x07"), "dtype: 7, expected one of 0 (BYTES), 1 (FLOAT32), 2 (FLOAT64)"),
        (resealed(GOOD, 48, struct.pack("<Q", 12)), "length: 12 bytes, expected a multiple of 8 for FLOAT64"),
        (resealed(GOOD, WEIGHT_AT, struct.pack("<d", math.nan)), "weight: nan, expected a finite number"),
        (resealed(GOOD, WEIGHT_AT, struct.pack("<d", -1.0)), "weight: -1.0, expected a finite number"),
        (resealed(GOOD, WEIGHT_AT, struct.pack("<d", math.inf)), "weight: inf, expected a finite number"),
        (GOOD[:-1], f"header: {HEADER_BYTES - 1} bytes, expected {HEADER_BYTES}"),
    ],
)
def test_a_refused_header_is_refused_by_field_value_and_what_was_expected(data: bytes, said: str) -> None:
    with pytest.raises(WireError) as caught:
        wire.unpack(data, RUN)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", Kind)
def test_the_caller_limits_the_length_of_each_kind(kind: Kind) -> None:
    limits = {**wire.LIMITS, kind: 100}
    assert wire.unpack(wire.pack(Header(kind, 1, length=100), RUN), RUN, limits).length == 100
    with pytest.raises(WireError, match=f"length: 101 bytes, expected at most 100 for {kind.name}"):
        wire.unpack(wire.pack(Header(kind, 1, length=101), RUN), RUN, limits)


@pytest.mark.parametrize(
    "header",
    [
        Header(Kind.MESSAGE, -1),
        Header(Kind.MESSAGE, 2**32),
        Header(Kind.MESSAGE, 1, slice=2**16),
        Header(Kind.COMBINED, 1, dtype=DType.FLOAT32, length=6),
    ],
)
def test_a_header_that_cannot_be_written_is_refused_before_it_is_sent(header: Header) -> None:
    with pytest.raises(WireError):
        wire.pack(header, RUN)
