"""Tiny Shakespeare as numbers, for the GPT of the benchmarks; needs torch alone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.gpt import GPT, Size

TEXT = Path(__file__).parents[2] / "shared" / "data" / "text" / "tinyshakespeare.txt"
SIZE = Size(64, 2, 32, 8)
"""0.1 M parameters: a step takes a few milliseconds of a core."""


class Characters(NamedTuple):
    """The first nine tenths of the text, and the rest; so many different letters."""

    training: torch.Tensor
    held_out: torch.Tensor
    letters: int


def characters() -> Characters:
    text = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8)
    letters, codes = torch.unique(text, return_inverse=True)
    cut = len(codes) * 9 // 10
    return Characters(codes[:cut], codes[cut:], len(letters))


def build(letters: int) -> tuple[GPT, torch.optim.Optimizer]:
    """The same model and optimizer everywhere."""
    torch.manual_seed(0)
    model = GPT(SIZE, letters)
    return model, torch.optim.AdamW(model.parameters(), 1e-3)


def windows(codes: torch.Tensor, samples: int, seed: int = 0) -> torch.Tensor:
    """Pieces [samples, context + 1] from random places, the same ones for the same seed."""
    chosen = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(codes) - SIZE.context, (samples, 1), generator=chosen)
    return codes[starts + torch.arange(SIZE.context + 1)]


def validation(model: nn.Module, codes: torch.Tensor) -> float:
    """The mean loss over all of the text, in windows that do not overlap."""
    whole = (len(codes) - 1) // SIZE.context * SIZE.context
    rows = torch.arange(0, whole, SIZE.context)[:, None] + torch.arange(SIZE.context + 1)
    with torch.no_grad():
        losses = [model(piece) * len(piece) for piece in torch.split(codes[rows], 128)]
    return float(torch.stack(losses).sum() / len(rows))
