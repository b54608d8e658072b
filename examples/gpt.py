"""A small GPT learns Python's standard library by characters: `manyhands run -n 4 examples/gpt.py`."""

import os
import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import manyhands as mh

CONTEXT, WIDTH, VOCABULARY = 64, 96, 128
torch.manual_seed(0)


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 3, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def loss(self, text: torch.Tensor) -> torch.Tensor:
        x, y = text[:, :-1], text[:, 1:]
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        hidden = self.body(self.token(x) + self.place.weight, mask=mask, is_causal=True)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), y.flatten())


files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
text = np.frombuffer(b"".join(file.read_bytes() for file in files)[:2_000_000], np.uint8)
text = np.minimum(text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)], VOCABULARY - 1)
windows = torch.from_numpy(text.reshape(-1, CONTEXT + 1).astype(np.int64))
test = windows[::20][:256]
train = windows[torch.arange(len(windows)) % 20 != 0][: int(os.environ.get("SAMPLES", 16000))]

pool = mh.join()
model = GPT()
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
batches = pool.partition(torch.utils.data.TensorDataset(train), batch_size=8)
with torch.no_grad():
    before = model.loss(test).item()
with pool.share(model, optimizer, mh.DiLoCo(every=20)) as shared:
    for (batch,) in batches:
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shared.log(loss=loss)
with torch.no_grad():
    print(f"validation loss before {before:.4f} after {model.loss(test).item():.4f}", flush=True)
