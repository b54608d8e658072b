"""A donor of `benchmarks.healing`, or who joins it again and again: each time another process."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import manyhands as mh
from benchmarks.figures import measured
from manyhands.worker import healing
from manyhands.worker.healing import Patient

folder = Path(os.environ["BENCH_FOLDER"])
donors, repetitions = int(os.environ["BENCH_DONORS"]), int(os.environ["BENCH_REPETITIONS"])
elements = int(os.environ["BENCH_ELEMENTS"])
name, over = os.environ["MANYHANDS_NAME"], folder / "over"
NEVER = 10**9  # local steps until a round: what donors do meanwhile is to train
REST_SECONDS = 3.0


def train() -> None:
    """Steps of some computing and some waiting, as for a device, until it is over."""
    steps: list[tuple[float, float]] = []
    matrix = np.random.default_rng(0).random((300, 300), np.float32)
    params = {"w": np.random.default_rng(1).random(elements, np.float32)}
    pool = mh.join()
    with pool.share(params, strategy=mh.LocalSGD(NEVER)) as shared:
        while not over.exists():
            began = time.monotonic()
            for _ in range(3):
                matrix @ matrix
            time.sleep(0.01)
            params["w"][:1000] += 1e-3
            shared.step()
            steps.append((began, time.monotonic() - began))
            if len(steps) == 50:
                (folder / f"trains-{name}").touch()
        for start in range(0, len(steps), 500):  # a line has a limit
            measured(name=name, steps=steps[start : start + 500])
        os._exit(0)  # without the round that would share what is left


def join() -> None:
    """Join once, with so many donors, and say how long the state took."""
    healing.DONORS = int(os.environ["BENCH_ASKED"])
    fetch, install, given = Patient.fetch, Patient._install, list[float]()

    def noted(self: Patient, state: Any) -> Any:
        given.append(time.monotonic())
        return install(self, state)

    def timed(self: Patient, heal: Any) -> Any:
        began, before = time.monotonic(), self._exchange.received_bulk_bytes
        version = fetch(self, heal)
        came = self._exchange.received_bulk_bytes - before
        measured(asked=healing.DONORS, began=began, given=given[-1], ended=time.monotonic(), bytes=came)
        return version

    Patient.fetch, Patient._install = timed, noted  # type: ignore[method-assign]
    pool = mh.join()
    with pool.share({"w": np.zeros(elements, np.float32)}, strategy=mh.LocalSGD(NEVER)):
        pass


def join_again_and_again() -> None:
    """With one donor and with all of them, in turn."""
    deadline = time.monotonic() + 60.0
    while len(list(folder.glob("trains-*"))) < donors and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        for repetition, asked in itertools.product(range(repetitions), (1, donors)):
            time.sleep(REST_SECONDS)
            own = {
                "BENCH_ROLE": "joiner",
                "BENCH_ASKED": str(asked),
                "MANYHANDS_NAME": f"{repetition}-{asked}",
            }
            subprocess.run([sys.executable, __file__], env={**os.environ, **own}, check=True, timeout=120)
        time.sleep(REST_SECONDS)
    finally:
        over.touch()


if os.environ.get("BENCH_ROLE") == "joiner":
    join()
elif name == str(donors):
    join_again_and_again()
else:
    train()
