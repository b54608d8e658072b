"""One worker of `benchmarks.memory`: a few steps by one strategy, and the most memory that it ever had."""

import os
from contextlib import nullcontext
from pathlib import Path

import manyhands as mh
from benchmarks.figures import measured
from benchmarks.gpt import SIZES, build, parameters, step, text

FOUR_BITS = mh.chain(mh.ErrorFeedback(), mh.Quantize(4))
STRATEGIES = {
    "plain": None,
    "EveryStep": mh.EveryStep(),
    "DiLoCo": mh.DiLoCo(every=2),
    "StreamingDiLoCo": mh.StreamingDiLoCo(every=8, fragments=4, overlap=1, encode=mh.chain()),
    "DiLoCo in 4 bits": mh.DiLoCo(every=2, encode=FOUR_BITS),
    "StreamingDiLoCo in 4 bits": mh.StreamingDiLoCo(every=8, fragments=4, overlap=1, encode=FOUR_BITS),
}
size, strategy = SIZES[os.environ["BENCH_MODEL"]], STRATEGIES[os.environ["BENCH_STRATEGY"]]


def kibibytes(name: str) -> int:
    """A figure of this process as Linux counts it; VmHWM is the most that ever was resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def of_neighbours() -> int:
    """KiB resident here that belong to other workers on this host, whose slices are read where they lie."""
    found, theirs = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "/memfd:manyhands" in line:
            theirs = line.split()[1] == "r--s"
        elif line.startswith("Rss:") and theirs:
            found, theirs = found + int(line.split()[1]), False
    return found


pool = mh.join()
model, optimizer = build(size)
data = text(size, size.batch)


def most_in(steps: int) -> int:
    """KiB that this process had at most; a neighbour may leave before it does."""
    theirs = 0
    for _ in range(steps):
        step(model, optimizer, data)
        theirs = max(theirs, of_neighbours())
    return kibibytes("VmHWM") - theirs


with pool.share(model, optimizer, strategy) if strategy is not None else nullcontext():
    peak = most_in(8)
    Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM counts anew
    measured(peak=1024 * peak, later=1024 * most_in(8), bytes=4 * parameters(model))
if strategy is None:
    pool.leave()
