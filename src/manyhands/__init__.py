"""Many hands make light work: one training script, many unreliable machines, one model, nothing lost."""

import importlib
from typing import TYPE_CHECKING, Any

from manyhands._version import __version__

if TYPE_CHECKING:
    from manyhands.sharing.encode.cast import Cast
    from manyhands.sharing.encode.chain import ErrorFeedback, chain
    from manyhands.sharing.encode.quantize import Quantize
    from manyhands.sharing.encode.topk import TopK
    from manyhands.sharing.outer import SGD, Nesterov
    from manyhands.sharing.rhythm import All, Deadline, seconds
    from manyhands.sharing.strategy import (
        DiLoCo,
        EveryStep,
        LocalSGD,
        SparseLoCo,
        Strategy,
        StreamingDiLoCo,
    )
    from manyhands.worker.batches import Batches
    from manyhands.worker.pool import Pool, join
    from manyhands.worker.shared import Shared

_HOMES = {
    "Cast": "manyhands.sharing.encode.cast",
    "ErrorFeedback": "manyhands.sharing.encode.chain",
    "chain": "manyhands.sharing.encode.chain",
    "Quantize": "manyhands.sharing.encode.quantize",
    "TopK": "manyhands.sharing.encode.topk",
    "SGD": "manyhands.sharing.outer",
    "Nesterov": "manyhands.sharing.outer",
    "All": "manyhands.sharing.rhythm",
    "Deadline": "manyhands.sharing.rhythm",
    "seconds": "manyhands.sharing.rhythm",
    "DiLoCo": "manyhands.sharing.strategy",
    "EveryStep": "manyhands.sharing.strategy",
    "LocalSGD": "manyhands.sharing.strategy",
    "SparseLoCo": "manyhands.sharing.strategy",
    "Strategy": "manyhands.sharing.strategy",
    "StreamingDiLoCo": "manyhands.sharing.strategy",
    "Batches": "manyhands.worker.batches",
    "Pool": "manyhands.worker.pool",
    "join": "manyhands.worker.pool",
    "Shared": "manyhands.worker.shared",
}

__all__ = [
    "SGD",
    "All",
    "Batches",
    "Cast",
    "Deadline",
    "DiLoCo",
    "ErrorFeedback",
    "EveryStep",
    "LocalSGD",
    "Nesterov",
    "Pool",
    "Quantize",
    "Shared",
    "SparseLoCo",
    "Strategy",
    "StreamingDiLoCo",
    "TopK",
    "__version__",
    "chain",
    "join",
    "seconds",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the launcher and the hub need no numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'manyhands' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
