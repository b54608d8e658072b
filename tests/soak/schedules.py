"""20,000 schedules that `make test` has not seen, other ones each time. `make soak` runs this file."""

from __future__ import annotations

import random
import time

import pytest

from manyhands.testing.many_seeds import broken_seeds, story

BEYOND = 5_000  # those below are in `make test`
SEEDS = 20_000


@pytest.mark.timeout(3600)
def test_every_invariant_holds_under_random_faults(capsys: pytest.CaptureFixture[str]) -> None:
    first, began, broken = BEYOND + random.SystemRandom().randrange(10**9), time.monotonic(), 0
    for done, seed in broken_seeds(first, SEEDS):
        broken += seed is not None
        with capsys.disabled():
            if seed is not None:
                print(story(seed))
            said = f"{done} of {SEEDS} schedules from seed {first}, {broken} broken"
            print(f"{said}, {time.monotonic() - began:.0f} s", flush=True)
    assert not broken, f"{broken} of {SEEDS} schedules broke an invariant, see above"
