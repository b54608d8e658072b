"""Handwritten digits by many hands: `manyhands run -n 4 examples/digits.py`."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import manyhands as mh

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16.0, dtype=torch.float32)
y = torch.tensor(digits.target)
train = torch.utils.data.TensorDataset(x[:1500], y[:1500])

pool = mh.join()
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
batches = pool.partition(train, batch_size=25, epochs=10)

with pool.share(model, optimizer, mh.LocalSGD(every=5)) as shared:
    for xs, ys in batches:
        loss = nn.functional.cross_entropy(model(xs), ys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shared.log(loss=loss)

with torch.no_grad():
    right = (model(x[1500:]).argmax(1) == y[1500:]).float().mean().item()
print(f"accuracy on {len(x) - 1500} digits never seen: {right:.3f}")
