"""Rounds of workers in threads whose strategy encodes what leaves a host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pool_with_hub import PoolWithHub

from manyhands.exchange.memory import this_machine
from manyhands.sharing.encode.cast import Cast
from manyhands.sharing.encode.chain import chain
from manyhands.sharing.layout import LEAST_BYTES
from manyhands.sharing.strategy import LocalSGD
from manyhands.worker.pool import Pool

SEGMENT = LEAST_BYTES // 4


def test_of_a_contribution_that_cannot_be_encoded_nothing_counts_not_even_the_segments_that_can(
    tmp_path: Path,
) -> None:
    """They are combined in place, where nothing could be taken out again."""

    def work(pool: Pool, number: int) -> tuple[float, float]:
        batches = pool.partition(np.ones((3, 1), np.float32), batch_size=1)
        params = {"w": np.zeros(SEGMENT + 8, np.float32)}
        with pool.share(params, strategy=LocalSGD(1, encode=chain(Cast("float16")))) as shared:
            for _ in batches:
                params["w"] += (1, 3, 60000)[number]
                if number == 2:
                    params["w"][SEGMENT:] = 1e6
                shared.step()
                break
        return params["w"][0], params["w"][-1]

    assert PoolWithHub(tmp_path, 3, this_machine()).run(work) == [(2.0, 2.0)] * 3
