"""All that a restarted hub must know, as plain values for the journal."""

from __future__ import annotations

from typing import Literal

import msgspec

from manyhands.core.checkpoints import SavedCheckpoints
from manyhands.core.ledger import SavedLedger
from manyhands.core.membership import SavedWorker, Totals
from manyhands.core.messages import Kept, Opened, Tensor, Version, View

RunState = Literal["waiting", "training", "changing", "finished", "failed", "stopped"]


class SavedCoordinator(msgspec.Struct, frozen=True):
    """A coordinator as plain values, for the journal."""

    run: str
    expected: int
    lease: float
    state: RunState
    why: str
    next_view: int
    view: View | None
    opened: Opened | None
    version: Version
    tensors: tuple[Tensor, ...]
    strategy: str
    ledger: SavedLedger
    digests: tuple[tuple[Version, dict[str, str]], ...]
    workers: tuple[SavedWorker, ...]
    checkpoints: SavedCheckpoints = SavedCheckpoints()
    restore: Kept | None = None
    epoch: int = 1
    taking_over: bool = False
    superseded: bool = False
    forgotten: Totals = Totals()
