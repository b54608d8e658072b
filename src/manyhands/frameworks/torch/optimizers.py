"""The optimizers of one model: one, or several that step one after another in the body of the script's loop.

So it is with torch.optim.Muon, which trains matrices alone, and AdamW for all else. A local step is over when
the last of them has stepped. Where that one does not (a GradScaler skips it, or the script steps it more
rarely), what the others have changed is shared with the next local step, or with what is left at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from manyhands.errors import ModelError

Optimizers = dict[str, torch.optim.Optimizer]
"""In the order in which they step, by the name that errors use."""


def named(given: object) -> Optimizers:
    """One optimizer, a list or tuple of them, or None; raises `ModelError` for anything else."""
    places: dict[str, Any] = {} if given is None else {"optimizer": given}
    if isinstance(given, (list, tuple)):
        places = {f"optimizer[{i}]": optimizer for i, optimizer in enumerate(given)}
    for place, optimizer in places.items():
        if not hasattr(optimizer, "register_step_post_hook"):
            raise ModelError(
                f"The {place} is a {type(optimizer).__qualname__}; share(model, optimizer, strategy) takes a "
                "torch.optim.Optimizer, or a list of them."
            )
    return {f"{place} ({type(optimizer).__qualname__})": optimizer for place, optimizer in places.items()}


def check_parameters(optimizers: Optimizers, named: list[tuple[str, torch.nn.Parameter]]) -> None:
    """Raise `ModelError` for a parameter that is not among those of the model, or is in two optimizers."""
    names = {id(p): name for name, p in named}
    owners: dict[int, str] = {}
    for owner, optimizer in optimizers.items():
        for p in (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad):
            if id(p) not in names:
                raise ModelError(
                    f"The {owner} also trains a parameter of shape {tuple(p.shape)} that is not in the "
                    "model, so it would differ between workers; share one module that holds both."
                )
            if owners.setdefault(id(p), owner) != owner:
                raise ModelError(
                    f"The parameter {names[id(p)]} is trained by {owners[id(p)]} and by {owner}; leave it to "
                    "one of them."
                )


def watch(
    optimizers: Optimizers, moved: Callable[[], None], stepped: Callable[[], None]
) -> Callable[[], None]:
    """Call `stepped` after each local step, `moved` after each earlier part of one; returns what ends it."""
    *earlier, last = optimizers.values()
    handles = [optimizer.register_step_post_hook(lambda *_: moved()) for optimizer in earlier]
    handles.append(last.register_step_post_hook(lambda *_: stepped()))

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end
