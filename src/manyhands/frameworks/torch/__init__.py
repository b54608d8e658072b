"""Models of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from manyhands.errors import ModelError, StrategyError
from manyhands.frameworks.companions import Companions
from manyhands.frameworks.streaming import updates_driver
from manyhands.frameworks.torch.every_step import EveryStep
from manyhands.frameworks.torch.groups import GroupSettings
from manyhands.frameworks.torch.leaves import from_tree, to_tree
from manyhands.frameworks.torch.optimizers import named
from manyhands.frameworks.torch.surface import TorchSurface
from manyhands.sharing.strategy import PLAIN, Strategy
from manyhands.worker.driving import Driver


def driver_for(model: object, optimizer: object, strategy: Strategy, also: Sequence[object]) -> Driver | None:
    """A driver for a `torch.nn.Module`; None for any other model. Raises `ModelError` and `StrategyError`.

    `optimizer`: one, or a list in the order in which they step; left out only where gradients are shared.
    """
    if not isinstance(model, torch.nn.Module):
        return None
    optimizers = named(optimizer)
    surface = TorchSurface(model, optimizers)
    companions = Companions(optimizers, also, to_tree, from_tree, GroupSettings(optimizers))
    if strategy.what == "gradients":
        scaled = any(isinstance(it, torch.amp.GradScaler) and it.is_enabled() for it in also)
        if scaled and strategy.encode != PLAIN:
            raise StrategyError(
                f"{strategy} cannot go with a GradScaler: it must see infinities, which no encoding carries; "
                "train in bfloat16 without a scaler, or share with EveryStep() without an encoding."
            )
        return EveryStep(surface, companions, scaled=scaled)
    if not optimizers:
        raise ModelError(
            f"{strategy} counts the steps of an optimizer, and there is none; "
            "call share(model, optimizer, strategy)."
        )
    return updates_driver(surface, companions, strategy)
