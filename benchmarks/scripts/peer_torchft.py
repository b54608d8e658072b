"""One worker of torchft for `benchmarks.low_bandwidth`: its DiLoCo, in turns with the plain loop."""

import os
from datetime import timedelta
from importlib.metadata import version

import torch
import torch.distributed as dist
from torchft.coordination import LighthouseServer
from torchft.local_sgd import DiLoCo
from torchft.manager import Manager
from torchft.process_group import ProcessGroupGloo

from benchmarks.figures import measured
from benchmarks.gloo import start_gloo
from benchmarks.gpt import SIZES, build, step, text
from benchmarks.turns import take_turns

size = SIZES[os.environ["BENCH_MODEL"]]
every, repetitions = int(os.environ["BENCH_EVERY"]), int(os.environ["BENCH_REPETITIONS"])
overlap, address = int(os.environ["BENCH_OVERLAP"]), os.environ["BENCH_ADDRESS"]
MINUTE = timedelta(seconds=60)

torch.set_num_threads(1)
rank, workers = start_gloo()
addresses = dist.FileStore(os.environ["BENCH_FOLDER"] + "/addresses", workers)  # type: ignore[attr-defined]
if rank == 0:
    lighthouse = LighthouseServer(bind="[::]:0", min_replicas=workers, join_timeout_ms=60_000)
    addresses.set("lighthouse", f"http://{address}:{lighthouse.address().rpartition(':')[2]}")
store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
manager = Manager(
    pg=ProcessGroupGloo(timeout=MINUTE),
    load_state_dict=None,
    state_dict=None,
    min_replica_size=workers,
    use_async_quorum=False,
    rank=0,
    world_size=1,
    store_addr=address,
    store_port=store.port,
    lighthouse_addr=addresses.get("lighthouse").decode(),
    replica_id=f"worker{rank}",
    hostname=address,
    init_sync=False,
)
shared, shared_optimizer = build(size)
alone, alone_optimizer = build(size)
data = text(size, size.batch * workers)[rank::workers]
outer = torch.optim.SGD(shared.parameters(), lr=0.7, momentum=0.9, nesterov=True)
with DiLoCo(
    manager,
    [shared],
    shared_optimizer,
    outer,
    sync_every=every,
    use_bucketization=True,
    fragment_sync_delay=overlap,
    fragment_update_alpha=0.5,
):
    for _ in range(every + every // 2):  # a turn begins and ends with nothing under way
        step(shared, shared_optimizer, data)
    arms = {
        "shared": (lambda: step(shared, shared_optimizer, data), every),
        "plain": (lambda: step(alone, alone_optimizer, data), every),
    }
    for repetition in range(repetitions):
        spent = take_turns(arms, repetition)
        if rank == 0:
            measured(version=version("torchft"), torch=torch.__version__, **spent)
dist.barrier()
manager.shutdown(wait=False)
dist.destroy_process_group()
