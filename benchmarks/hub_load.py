"""A real hub under many workers: 200 simulated ones on real sockets, with heartbeats, rounds and leases.

The workers live in one process beside the hub's. Each joins, shares a model of one tensor, beats once a
second and leases data; a round is one `Applied` from every worker, the first with what the version is
made of: a batch of each. First rounds come as fast as the hub takes them (at most `--ahead` that it has
not acknowledged), then at `--pace`, where the hub's share of a core is measured. What members say to each
other does not pass through the hub, and does not happen here.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import psutil
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.launching import environment, need_linux
from benchmarks.rows import CannotRun, Row, main, quartiles, say
from manyhands._version import __version__
from manyhands.core.holding import Holding
from manyhands.core.messages import (
    Acknowledged,
    Applied,
    Asked,
    Beat,
    Contribution,
    Dataset,
    Declared,
    Entered,
    Hello,
    Leased,
    Opened,
    Ready,
    Tensor,
    ToHub,
    ToWorker,
    Version,
    decode_for_worker,
    encode,
)
from manyhands.engines.folder import read_hub_file

BATCH = 8
MOST_MEGABYTES = 200.0
DATASET = Dataset(0, 10**9, BATCH, 1, "dynamic", 0)


class Worker:
    """One simulated worker: it answers the hub as a real one would, and takes part in every round."""

    def __init__(self, number: int, socket: ClientConnection, run: str) -> None:
        self.number, self.run = number, run
        self.incarnation = f"{number}-simulated"
        self.holding = Holding(DATASET)
        self.view = self.acknowledged = 0
        self.member = asyncio.Event()
        self.heard = asyncio.Event()
        self._socket = socket
        self._asked = False

    async def say(self, message: ToHub) -> None:
        await self._socket.send(encode(message))

    async def join(self) -> None:
        await self.say(
            Hello(self.run, self.incarnation, str(self.number), 1, "127.0.0.1", 1 + self.number, __version__)
        )
        await self.say(Declared(DATASET))
        await self.say(Ready((Tensor("w", (1000,), "float32"),), "simulated"))

    async def listen(self) -> None:
        async for data in self._socket:
            assert isinstance(data, bytes)
            await self._take(decode_for_worker(data))

    async def _take(self, message: ToWorker) -> None:
        match message:
            case Opened(view, at):
                self.view = view.number
                await self.say(Entered(view.number, Version(at, view.number)))
                self.member.set()
            case Leased(_, _, spans):
                self.holding.leased(spans)
                self._asked = False
                self.heard.set()
            case Acknowledged(number):
                self.acknowledged = number
                self.heard.set()

    async def beat(self) -> None:
        await asyncio.sleep(self.number % 100 / 100)
        while True:
            await self.say(Beat(read=self.holding.queued))
            await asyncio.sleep(1.0)

    async def contribute(self) -> Contribution:
        """A batch of what is leased; asks for more ahead of need, and waits where it has none."""
        while self.holding.queued < BATCH:
            self.heard.clear()
            await self._ask()
            await self.heard.wait()
        if self.holding.queued < 4 * BATCH:
            await self._ask()
        spans = self.holding.take(BATCH)
        self.holding.taken.clear()
        return Contribution(self.incarnation, float(BATCH), spans, {"loss": (1.0, 1.0)})

    async def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            await self.say(Asked(0, 0, 32 * BATCH))


class Load:
    """All workers of the run, and the hub's process under them."""

    def __init__(self, workers: list[Worker], hub: psutil.Process) -> None:
        self.workers, self.hub = workers, hub
        self.version = 0
        self.resident = 0.0

    async def round(self) -> None:
        self.version += 1
        contributions = tuple(await asyncio.gather(*(worker.contribute() for worker in self.workers)))
        version = Version(self.version, self.workers[0].view)
        for worker in self.workers:
            await worker.say(Applied(version, "digest", contributions if worker.number == 0 else None))

    async def acknowledged(self, number: int) -> None:
        first = self.workers[0]
        while first.acknowledged < number:
            first.heard.clear()
            await first.heard.wait()

    async def saturate(self, seconds: float, ahead: int) -> tuple[float, float]:
        """Rounds a second that the hub acknowledges when it always has one, and its share of a core."""
        began, before, cpu = time.perf_counter(), self.version, self._cpu()
        while time.perf_counter() - began < seconds:
            await self.round()
            await self.acknowledged(self.version - ahead)
        await self.acknowledged(self.version)
        self._look()
        took = time.perf_counter() - began
        return (self.version - before) / took, (self._cpu() - cpu) / took

    async def pace(self, seconds: float, rounds_per_second: float) -> float:
        """The hub's share of one core at so many rounds per second."""
        began, before = time.perf_counter(), self._cpu()
        for number in range(max(1, round(seconds * rounds_per_second))):
            await asyncio.sleep(max(0.0, began + number / rounds_per_second - time.perf_counter()))
            await self.round()
        await self.acknowledged(self.version)
        self._look()
        return (self._cpu() - before) / (time.perf_counter() - began)

    def _cpu(self) -> float:
        times = self.hub.cpu_times()
        return float(times.user + times.system)

    def _look(self) -> None:
        self.resident = max(self.resident, self.hub.memory_info().rss / 1e6)


def measure(given: argparse.Namespace) -> Iterator[Row]:
    need_linux()
    workers = 10 if given.quick else given.workers
    seconds, repetitions = (0.5, 1) if given.quick else (given.seconds, given.repetitions)
    found, resident = asyncio.run(under_load(workers, seconds, repetitions, given.pace, given.ahead))
    for name, unit, values in (
        (f"rounds taken from {workers} workers", "rounds/s", [rate for rate, _, _ in found]),
        ("the hub's share of a core meanwhile", "%", [100 * busy for _, busy, _ in found]),
        (f"its share at {given.pace:g} rounds/s", "%", [100 * share for _, _, share in found]),
    ):
        low, high = quartiles(values)
        yield Row(name, statistics.median(values), unit, low=low, high=high, repetitions=len(values))
    yield Row(f"the hub's memory under {workers} workers", resident, "MB", most=MOST_MEGABYTES)


async def under_load(
    workers: int, seconds: float, repetitions: int, pace: float, ahead: int
) -> tuple[list[tuple[float, float, float]], float]:
    """For each repetition rounds a second, the hub's share then, and its share at `pace`; its memory."""
    run, token, found = "load", secrets.token_hex(16), []
    with (
        tempfile.TemporaryDirectory(prefix="manyhands-bench-") as folder,
        hub_process(Path(folder), run, token, workers) as (url, process),
    ):
        async with (
            simulated(workers, url, run, token) as pool,
            asyncio.timeout(60 + repetitions * 10 * seconds),
        ):
            load = Load(pool, process)
            await load.saturate(seconds / 2, ahead)
            for repetition in range(repetitions):
                rate, busy = await load.saturate(seconds, ahead)
                share = await load.pace(seconds, pace)
                found.append((rate, busy, share))
                took = f"{rate:.1f} rounds/s with {busy:.0%} of a core, {pace:g} rounds/s with {share:.0%}"
                say(f"{repetition + 1} of {repetitions}: {took}")
    return found, load.resident


@asynccontextmanager
async def simulated(workers: int, url: str, run: str, token: str) -> AsyncIterator[list[Worker]]:
    """So many members of a pool, which beat and listen for as long as the block lasts."""
    headers = {"Authorization": f"Bearer {token}"}
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        pool = []
        for number in range(workers):
            socket = await stack.enter_async_context(
                connect(url, additional_headers=headers, ping_interval=None, compression=None, max_size=None)
            )
            pool.append(Worker(number, socket, run))
        chores = [tasks.create_task(chore) for worker in pool for chore in (worker.listen(), worker.beat())]
        for worker in pool:
            await worker.join()
        async with asyncio.timeout(60):
            for worker in pool:
                await worker.member.wait()
        say(f"{workers} workers are members")
        yield pool
        for chore in chores:
            chore.cancel()


@contextmanager
def hub_process(folder: Path, run: str, token: str, workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """A hub as users start it; its control address and its process."""
    command = [sys.executable, "-m", "manyhands.hub", "--folder", str(folder), "--run", run]
    command += ["--expected", str(workers), "--lease", "60"]
    env = {**os.environ, **environment(), "MANYHANDS_TOKEN": token}
    with (folder / "hub.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 30
        while (told := read_hub_file(folder)) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise CannotRun(f"the hub did not start: {(folder / 'hub.log').read_text()[-500:]}")
            time.sleep(0.02)
        yield told.url.replace("http", "ws", 1) + "/control", psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=200, help="simulated workers (200)")
    parser.add_argument("--seconds", type=float, default=10, help="of each kind of load (10)")
    parser.add_argument("--repetitions", type=int, default=3, help="of both kinds, in turn (3)")
    parser.add_argument("--pace", type=float, default=1, help="rounds per second for the hub's share (1)")
    parser.add_argument("--ahead", type=int, default=20, help="unacknowledged rounds at most (20)")


if __name__ == "__main__":
    sys.exit(main(str(__doc__), measure, options))
