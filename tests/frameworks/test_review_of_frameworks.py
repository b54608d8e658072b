"""Findings of a review: each of these fails on the code as it is."""

from __future__ import annotations

import numpy as np
from pool_of_threads import Pool

from manyhands.sharing.strategy import LocalSGD
from manyhands.worker.driving import driver_for


def test_who_misses_rounds_shares_what_it_learned_after_its_own_number_of_steps_all_the_same() -> None:
    """Else who is in a step at each deadline contributes nothing until the data are at an end."""
    place = Pool(1).places[0]
    params = {"w": np.zeros(2, np.float32)}
    driver = place.share(driver_for(params, None, LocalSGD(2)))
    for step in range(20):
        if step % 2:
            place.late[place.rounds] = np.zeros(2, np.float32)
        params["w"] -= 1.0
        driver.step()
    assert place.rejections, "it has taken 20 steps, and has proposed nothing"


def test_what_is_not_a_number_is_no_less_rejected_after_a_round_that_was_missed() -> None:
    """Its samples are committed with the next contribution, in which nothing of them is."""
    place = Pool(1).places[0]
    params = {"w": np.zeros(2, np.float32)}
    driver = place.share(driver_for(params, None, LocalSGD(5)))
    params["w"] += np.nan
    place.late[0] = np.zeros(2, np.float32)
    driver.step()
    driver.flush()
    assert place.rejections
    assert place.rejections[0]
