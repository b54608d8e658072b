"""The settings in the parameter groups of optimizers, which schedules change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from manyhands.frameworks.torch.optimizers import Optimizers


class GroupSettings:
    """Everything in the parameter groups but the parameters."""

    def __init__(self, optimizers: Optimizers) -> None:
        self._optimizers = optimizers

    def get(self) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in group.items() if name != "params"} for group in self._groups()
        ]

    def put(self, settings: list[dict[str, Any]]) -> None:
        for group, values in zip(self._groups(), settings, strict=True):
            for name, value in values.items():
                if isinstance(group.get(name), torch.Tensor):
                    group[name].copy_(value)
                else:
                    group[name] = value

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self._optimizers.values():
            yield from optimizer.param_groups
