"""The versions that a worker holds and that the hub may not know of."""

from __future__ import annotations

from msgspec.structs import replace

from manyhands.core.messages import Applied, encode

MOST_BYTES = 4 << 20
"""A Hello holds all of them, and has 16 MiB. Of older ones what is committed of the data tells."""


class Unacknowledged:
    """The newest of them, in order, as many as fit into `MOST_BYTES`; the last one always."""

    def __init__(self) -> None:
        self._versions: dict[int, Applied] = {}
        self._bytes: dict[int, int] = {}
        self._total = 0

    @property
    def all(self) -> tuple[Applied, ...]:
        """The oldest first."""
        return tuple(self._versions.values())

    def add(self, applied: Applied) -> None:
        """This worker has committed the next version."""
        number, size = applied.version.number, len(encode(applied))
        self._versions[number], self._bytes[number] = applied, size
        self._total += size
        while len(self._versions) > 1 and self._total > MOST_BYTES:
            self._forget(next(iter(self._versions)))

    def adopted(self, number: int, digest: str, *, last: bool) -> Applied | None:
        """Its driver holds the version; None where the hub knows of it, or it came from elsewhere."""
        applied = self._versions.get(number)
        if applied is not None:
            applied = self._versions[number] = replace(applied, digest=digest, last=last)
        return applied

    def acknowledged(self, number: int) -> None:
        """The hub has every version up to this one."""
        for known in [known for known in self._versions if known <= number]:
            self._forget(known)

    def _forget(self, number: int) -> None:
        del self._versions[number]
        self._total -= self._bytes.pop(number)
