"""What a checkpoint is: said in the file that is written last, so that a torn one has none."""

from __future__ import annotations

import msgspec

from manyhands.core.messages import Dataset, SavedHolding, Tensor, Version

FORMAT = 2


class File(msgspec.Struct, frozen=True):
    """One file of a checkpoint: its length, and the XXH3 (128 bits, in hex) of its bytes."""

    bytes: int
    digest: str


class Manifest(msgspec.Struct, frozen=True):
    """The committed state of a run as of a version, but for the arrays and the script's own plain values.

    `created`: seconds since 1970. `datasets` and `holdings` say which samples are committed by this version.
    """

    format: int
    software: str
    run: str
    version: Version
    created: float
    strategy: str
    tensors: tuple[Tensor, ...]
    datasets: tuple[Dataset, ...]
    holdings: tuple[SavedHolding, ...]
    files: dict[str, File]

    @property
    def samples(self) -> int:
        """Committed by this version, over all epochs of all data sets."""
        lengths = {dataset.index: dataset.length for dataset in self.datasets}
        return sum(
            held.epoch * lengths[held.dataset] + sum(stop - start for start, stop in held.committed)
            for held in self.holdings
        )

    @property
    def bytes(self) -> int:
        """Of all files but this one."""
        return sum(file.bytes for file in self.files.values())
