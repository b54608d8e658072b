"""Many hands make light work: one training script, many unreliable machines, one model, nothing lost."""

from manyhands._version import __version__
from manyhands.sharing.outer import SGD, Nesterov
from manyhands.sharing.strategy import DiLoCo, EveryStep, LocalSGD, Strategy
from manyhands.worker.batches import Batches
from manyhands.worker.pool import Pool, join
from manyhands.worker.shared import Shared

__all__ = [
    "SGD",
    "Batches",
    "DiLoCo",
    "EveryStep",
    "LocalSGD",
    "Nesterov",
    "Pool",
    "Shared",
    "Strategy",
    "__version__",
    "join",
]
