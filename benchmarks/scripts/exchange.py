"""One worker of `benchmarks.exchange`: averages a vector with manyhands, sums it with gloo, and looks
how fast the machine moves as many bytes."""

import os
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.figures import measured
from benchmarks.gloo import start_gloo
from manyhands.sharing.combine import mean
from manyhands.sharing.encode.chain import chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.strategy import EveryStep
from manyhands.worker.driving import driver_for
from manyhands.worker.session import Session
from manyhands.worker.settings import Settings

elements = int(os.environ["BENCH_BYTES"]) // 4
repetitions = int(os.environ["BENCH_REPETITIONS"])
bits = int(os.environ.get("BENCH_BITS", "32"))
between_hosts = "BENCH_BETWEEN_HOSTS" in os.environ
PIECE = 1 << 20


def over_loopback(data: memoryview, connections: tuple[socket.socket, socket.socket]) -> None:
    """As many bytes through a connection as this worker would send and take in."""
    out, back = connections
    sender = threading.Thread(target=out.sendall, args=(data,))
    sender.start()
    into = landing.data.cast("B")[:PIECE]
    left = data.nbytes
    while left:
        left -= back.recv_into(into, min(left, PIECE), socket.MSG_WAITALL)
    sender.join()


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        out = socket.create_connection(listener.getsockname())
        return out, listener.accept()[0]


rank, size = start_gloo()
session = Session(Settings.of())
strategy = EveryStep() if bits == 32 else EveryStep(encode=chain(Quantize(bits)))  # type: ignore[arg-type]
driver = driver_for({"w": np.zeros(elements, np.float32)}, None, strategy)
session.share(driver, strategy)

rng = np.random.default_rng(rank)
driver.contribution[:] = rng.random(elements, np.float32)
tensor = torch.zeros(elements)
landing = np.zeros(elements, np.float32)
share = elements // size
moved = np.zeros(2 * (elements - share), np.float32).data.cast("B")
connections = connected()


def ours() -> None:
    session.learned()
    for segment in range(len(driver.layout.segments)):
        session.ready(segment)
    assert session.finish(b"").total_weight == size


def memory() -> None:
    """The own slice summed over all workers, and the others' slices copied into place."""
    mean(
        landing[:share], [driver.contribution[i * share : (i + 1) * share] for i in range(size)], [1.0] * size
    )
    np.copyto(landing[share:], driver.contribution[share:])


ours()  # before any wait for gloo: the first worker is who gives the others their state
session.adopted()
arms: dict[str, Callable[[], object]] = {
    "ours": ours,
    "gloo": lambda: dist.all_reduce(tensor),
    "loopback": lambda: over_loopback(moved, connections),
    "memory": memory,
}
names = ["ours", "gloo"] if between_hosts else list(arms)
for repetition in range(-2, repetitions):
    slowest = torch.zeros(len(names))
    turn = repetition % len(names)
    for name in names[turn:] + names[:turn]:
        dist.barrier()
        began = time.perf_counter()
        arms[name]()
        slowest[names.index(name)] = time.perf_counter() - began
        if name == "ours":
            session.adopted()
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    if rank == 0 and repetition >= 0:
        measured(**dict(zip(names, slowest.tolist(), strict=True)))
dist.destroy_process_group()
for connection in connections:
    connection.close()
driver.detach()
session.leave(finished=True, why="it has finished")
