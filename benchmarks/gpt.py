"""The model of the benchmarks: a GPT like the one of `examples/gpt.py`, in sizes, on random text."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY = 128


class Size(NamedTuple):
    width: int
    layers: int
    context: int
    batch: int


SIZES = {
    "tiny": Size(64, 1, 16, 2),  # 0.07 M parameters
    "3M": Size(256, 4, 64, 4),  # 3.2 M
    "10M": Size(384, 6, 64, 4),  # 10.8 M
    "40M": Size(768, 6, 16, 1),  # 42.8 M, few activations
}


class GPT(nn.Module):
    """Called with text [batch, context + 1] of int64, returns the mean loss of the next character."""

    def __init__(self, size: Size, letters: int = VOCABULARY, heads: int = 0) -> None:
        super().__init__()
        self.token = nn.Embedding(letters, size.width)
        self.place = nn.Embedding(size.context, size.width)
        layer = nn.TransformerEncoderLayer(
            size.width,
            heads or size.width // 64,
            4 * size.width,
            0.0,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        self.body = nn.TransformerEncoder(
            layer, size.layers, nn.LayerNorm(size.width), enable_nested_tensor=False
        )
        self.head = nn.Linear(size.width, letters)
        self.mask = nn.Transformer.generate_square_subsequent_mask(size.context)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        hidden = self.token(text[:, :-1]) + self.place.weight
        hidden = self.body(hidden, mask=self.mask, is_causal=True)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), text[:, 1:].flatten())


def build(size: Size, seed: int = 0) -> tuple[GPT, torch.optim.Optimizer]:
    """The same model and optimizer for the same seed."""
    torch.manual_seed(seed)
    model = GPT(size)
    return model, torch.optim.AdamW(model.parameters(), 1e-3)


def text(size: Size, samples: int) -> torch.Tensor:
    """Random text [samples, context + 1], the same everywhere."""
    return torch.randint(VOCABULARY, (samples, size.context + 1), generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> torch.Tensor:
    """One step of the plain loop; returns the loss."""
    loss: torch.Tensor = model(batch)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
