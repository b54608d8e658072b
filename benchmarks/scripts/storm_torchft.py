"""A worker of `benchmarks.storm` under torchft: its DistributedDataParallel, with whoever is there."""

import os
import time
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torchft.ddp import DistributedDataParallel
from torchft.manager import Manager
from torchft.optim import OptimizerWrapper
from torchft.process_group import ProcessGroupGloo

from benchmarks.characters import SIZE, build, characters, windows
from benchmarks.standing import came

torch.set_num_threads(1)
name = os.environ["MANYHANDS_NAME"]
text = characters()
model, optimizer = build(text.letters)
committed = came(name)


def state_dict() -> dict[str, Any]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def load_state_dict(state: dict[str, Any]) -> None:
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


lease = timedelta(seconds=float(os.environ["BENCH_LEASE"]))
store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
manager = Manager(
    pg=ProcessGroupGloo(timeout=lease),
    load_state_dict=load_state_dict,
    state_dict=state_dict,
    min_replica_size=1,
    timeout=lease,
    rank=0,
    world_size=1,
    store_addr="localhost",
    store_port=store.port,
    lighthouse_addr=os.environ["BENCH_LIGHTHOUSE"],
    replica_id=f"worker{name}-",
    hostname="localhost",
)
shared, shared_optimizer = DistributedDataParallel(manager, model), OptimizerWrapper(manager, optimizer)
for number in count():
    time.sleep(float(os.environ["BENCH_PACE"]))
    batch = windows(text.training, SIZE.batch, seed=number * 64 + int(name))
    shared_optimizer.zero_grad()
    shared(batch).backward()
    shared_optimizer.step()
    committed(manager.batches_committed())
