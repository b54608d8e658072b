"""Memory that other processes of this host may read: a slice that lies in it need not be sent.

Nobody writes to the memory of another, so a process that was stopped, lost its place and wakes up can
spoil nothing but its own. Whoever reads looks before and after at a stamp, which says what lies there.
The memory has no name that could be left over: the kernel frees it with the last process that maps it.
"""

from __future__ import annotations

import mmap
import os
import secrets
import stat
from contextlib import suppress
from struct import Struct
from struct import error as StructError
from typing import Any, Final
from weakref import WeakSet

import numpy as np
import psutil
import xxhash

from manyhands.errors import WireError
from manyhands.exchange.wire import Header, Kind

try:
    import fcntl

    _KEPT_SIZE: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
except (ImportError, AttributeError):  # not on Linux: `Memory` says so
    pass

LENT_SLICES: Final = 64
"""So many combined slices of a segment may be lent; those of ranks beyond are sent."""

_NAME: Final = "manyhands"
_NONCE_BYTES: Final = 32
_OFFER: Final = Struct(f"<QQQQ{_NONCE_BYTES}s16s")  # process, descriptor, bytes, segments, nonce, machine
_STAMP: Final = Struct("<BIQQ")
_PAGE: Final = mmap.PAGESIZE

Array = np.ndarray[Any, Any]


def this_machine(part: str = "") -> str:
    """The same for all processes that can read each other's memory and send over the same line.

    That is one user's, on one kernel since its start, with the same processes and the same network, who name
    the same `part` of it. "" where the system does not tell.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        spaces = [os.stat(f"/proc/self/ns/{space}").st_ino for space in ("pid", "net")]
    except OSError:
        return ""
    return xxhash.xxh3_64_hexdigest(f"{boot} {spaces} {os.geteuid()} {part}".encode())


class Memory:
    """`vectors` flat vectors of `nbytes` each, cut into `segments`, that processes of this host may read.

    `machine`: what `this_machine` has said. Raises OSError where the system has no such memory, or not
    enough of it.
    """

    def __init__(self, vectors: int, nbytes: int, segments: int, machine: str) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memory that processes share by descriptor")
        begin, step = _stamps_end(segments), _whole_pages(nbytes)
        size = begin + vectors * step
        available = psutil.virtual_memory().available
        if size > available:
            raise OSError(f"{size >> 20} MB are needed, and {available >> 20} MB are available")
        self._free = [begin + number * step for number in range(vectors)]
        self._descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self._descriptor, 0, size)  # now, and not by a signal at the first write
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _KEPT_SIZE)
            self._mapped = mmap.mmap(self._descriptor, size)
        except BaseException:
            os.close(self._descriptor)
            raise
        nonce = secrets.token_bytes(_NONCE_BYTES)
        self._mapped[:_NONCE_BYTES] = nonce
        self._stamps = _stamps(self._mapped, segments)
        self._address = _address(self._mapped)
        self.offer = _OFFER.pack(os.getpid(), self._descriptor, size, segments, nonce, machine.encode())
        """What another process needs to read it, and to know that it is this memory that it reads."""

    def __del__(self) -> None:
        if hasattr(self, "offer"):
            os.close(self._descriptor)

    def vector(self, elements: int, dtype: np.dtype[Any]) -> Array:
        """The next vector, zero; raises IndexError when all are given out."""
        return np.frombuffer(self._mapped, dtype, elements, self._free.pop(0))

    def where(self, payload: memoryview) -> int | None:
        """How far into this memory a payload begins; None for one that lies elsewhere."""
        if not payload.nbytes:
            return None
        offset = _address(payload) - self._address
        return offset if 0 <= offset < len(self._mapped) else None

    def publish(self, header: Header) -> None:
        """What is of this header's kind, segment and slice is that of its round from now on."""
        if lends(header):
            self._stamps[_row(header), header.segment] = _stamp(header)

    def withdraw(self, kind: Kind) -> None:
        """Slices of this kind are about to be written: who reads one now is to throw it away."""
        self._stamps[_rows(kind)] = 0

    def withdraw_combined(self, segment: int, slice_: int) -> None:
        """The combined slice is about to be written again: who reads it now is to throw it away."""
        if slice_ < LENT_SLICES:
            self._stamps[1 + slice_, segment] = 0


class Loan:
    """A slice in the memory of another process; `payload` may change as soon as it does not `stand`."""

    def __init__(self, neighbour: Neighbour, header: Header, payload: memoryview) -> None:
        self.payload = payload
        self._neighbour, self._header = neighbour, header

    @property
    def stands(self) -> bool:
        """The slice is there; asked again after reading it: what was read is what was meant."""
        return self._neighbour.has(self._header)


class Neighbour:
    """The memory of another process of the host whose own offer is `ours`.

    Raises WireError for an offer that is none here.
    """

    def __init__(self, offer: bytes, ours: bytes) -> None:
        try:
            process, descriptor, size, segments, nonce, machine = _OFFER.unpack(offer)
            path = f"/proc/{process}/fd/{descriptor}"
            if machine != _OFFER.unpack(ours)[-1]:
                raise WireError(f"{path} is not the memory that was offered: it is another host's")
            found = os.stat(path)  # before it is opened: on another host that may be anything at all
            if not stat.S_ISREG(found.st_mode) or found.st_size != size or found.st_uid != os.geteuid():
                raise WireError(f"{path} is not the memory that was offered: it is another host's")
            with open(path, "rb", buffering=0) as file:
                if fcntl.fcntl(file, fcntl.F_GET_SEALS) & _KEPT_SIZE != _KEPT_SIZE:
                    raise WireError(f"{path} may become smaller while it is read")
                self._mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
            self._mapped.madvise(mmap.MADV_DONTFORK)
            _mapped_here.add(self)
        except (StructError, OSError, ValueError) as error:
            raise WireError(f"the memory that was offered cannot be read: {error}") from error
        if self._mapped[:_NONCE_BYTES] != nonce or size < _stamps_end(segments):
            raise WireError(f"{path} is not the memory that was offered: it is another host's")
        self._stamps = _stamps(self._mapped, segments)

    def loan(self, header: Header, offset: int) -> Loan:
        """The slice that begins there; raises WireError for one that does not lie in this memory."""
        if not lends(header) or header.segment >= self._stamps.shape[1]:
            raise WireError(f"{header} cannot lie in shared memory")
        if offset + header.length > len(self._mapped):
            raise WireError(
                f"place: {offset} and {header.length} bytes, expected within {len(self._mapped)} bytes"
            )
        return Loan(self, header, memoryview(self._mapped)[offset : offset + header.length])

    def has(self, header: Header) -> bool:
        """What lies there is of this header's round."""
        return int(self._stamps[_row(header), header.segment]) == _stamp(header)


_mapped_here: Final[WeakSet[Neighbour]] = WeakSet()
_kept: Final[list[Neighbour]] = []


def _let_go_in_child() -> None:
    """The workers of a data loader outlive a neighbour that is killed: its memory must not wait for them."""
    _kept.extend(_mapped_here)  # to unmap them here, where nothing is mapped, might hit something else
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(f"/memfd:{_NAME}"):
                os.dup2(nothing, int(name), inheritable=False)
    os.close(nothing)


if hasattr(os, "memfd_create"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def lends(header: Header) -> bool:
    """Whether what is of this kind and slice may stay where it is; whole segments and states are rare."""
    return header.kind is Kind.CONTRIBUTION or (header.kind is Kind.COMBINED and header.slice < LENT_SLICES)


def _row(header: Header) -> int:
    """Of the stamps: all slices of a contribution are lent at once, and combined ones each in its time."""
    return 0 if header.kind is Kind.CONTRIBUTION else 1 + header.slice


def _rows(kind: Kind) -> slice:
    return slice(0, 1) if kind is Kind.CONTRIBUTION else slice(1, None)


def _stamp(header: Header) -> int:
    """What tells the content of a slice from that of all other rounds; never 0."""
    told = _STAMP.pack(header.kind, header.view, header.base, header.subset)
    return xxhash.xxh3_64_intdigest(told) | 1


def _address(memory: memoryview | mmap.mmap) -> int:
    address: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return address


def _stamps(mapped: mmap.mmap, segments: int) -> Array:
    rows = 1 + LENT_SLICES
    return np.frombuffer(mapped, np.uint64, rows * segments, _NONCE_BYTES).reshape(rows, segments)


def _stamps_end(segments: int) -> int:
    return _whole_pages(_NONCE_BYTES + 8 * (1 + LENT_SLICES) * segments)


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // _PAGE) * _PAGE
