"""Lines that are cut, whole or one way only: decided by the view in bounded time, and nothing is lost."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from invariants import assert_all
from lines import HUB, LEASE, Lines, lines
from training import SCRIPT, Ran

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

BOUND = 2 * LEASE + 4.0
"""Seconds from a cut until the others go on: a lease of silence, another for two members that disagree."""


def whole(net: Lines) -> None:
    net.unplug("0")


def hub_only(net: Lines) -> None:
    net.cut("0", HUB)
    net.cut(HUB, "0")


def peers_only(net: Lines) -> None:
    net.cut("0", "1", "2")
    net.cut("1", "0")
    net.cut("2", "0")


def words_to_the_hub(net: Lines) -> None:
    net.cut("0", HUB)


def words_of_the_hub(net: Lines) -> None:
    net.cut(HUB, "0")


def words_to_peers(net: Lines) -> None:
    net.cut("0", "1", "2")


CUTS = [whole, hub_only, peers_only, words_to_the_hub, words_of_the_hub, words_to_peers]


def mend(net: Lines) -> None:
    net.plug_in("0")
    net.mend("0", "1", "2", HUB)
    for one in ("1", "2", HUB):
        net.mend(one, "0")


def assert_minority_committed_nothing(ran: Ran) -> None:
    """No version was committed in a view without the others."""
    sizes = {number: len(members) for number, _, members in ran.views}
    assert all(sizes[version.view] >= 2 for version in ran.versions)


@pytest.mark.parametrize(
    ("cut", "strategy"),
    [
        *((cut, "mh.EveryStep()") for cut in CUTS),
        (whole, "mh.DiLoCo(4)"),
        (words_to_peers, "mh.StreamingDiLoCo(8, fragments=2, overlap=2)"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_others_go_on_in_bounded_time_and_who_was_cut_off_comes_back_by_itself(
    tmp_path: Path, cut: Callable[[Lines], None], strategy: str
) -> None:
    with lines(tmp_path, SCRIPT.replace("STRATEGY", strategy)) as net:
        net.until("200 samples", lambda: net.committed() >= 200)
        cut(net)
        began = time.monotonic()
        net.until("a view without it", lambda: net.members() == {"1", "2"}, BOUND)
        before = net.committed()
        net.until("more samples", lambda: net.committed() > before + 100, 10.0)
        assert time.monotonic() - began < BOUND + 10.0
        mend(net)
        net.until("its return", lambda: net.contributed("0") > 0)
        ran = net.end()
    assert_all(ran, cut=True)
    assert_minority_committed_nothing(ran)


def test_while_nobody_reaches_the_hub_training_goes_on_and_nothing_is_lost(tmp_path: Path) -> None:
    """For twice a lease: workers need the hub for more data alone, and it waits for who held the version."""
    with lines(tmp_path, SCRIPT.replace("STRATEGY", "mh.DiLoCo(4)")) as net:
        net.until("200 samples", lambda: net.committed() >= 200)
        for name in "012":
            net.cut(HUB, name)
            net.cut(name, HUB)
        time.sleep(2 * LEASE)  # what is tested is what comes of such a time
        cut = net.committed()
        for name in "012":
            net.mend(HUB, name)
            net.mend(name, HUB)
        net.until("all of them", lambda: net.members() == {"0", "1", "2"}, BOUND)
        net.until("more samples", lambda: net.committed() > cut + 100, 10.0)
        ran = net.end()
    assert_all(ran, cut=True)


BULK = """
import numpy as np
import manyhands as mh

pool = mh.join()
params = {"w": np.zeros(1_000_000, np.float32)}
with pool.share(params, strategy=mh.EveryStep()) as shared:
    for _ in pool.partition(np.zeros((15, 1), np.float32), batch_size=1):
        params["w"] -= shared.average({"w": np.ones(1_000_000, np.float32)})["w"]
        shared.step()
"""


def test_a_round_longer_than_a_lease_over_a_slow_line_makes_no_beat_late(tmp_path: Path) -> None:
    """At 10 Mbit/s a round of 4 MB takes over 4 s, all of which the line is full, and the lease is 3 s."""
    with lines(tmp_path, BULK, megabits=10.0) as net:
        ran = net.end()
    assert ran.outcome is not None
    assert ran.outcome.code == 0
    assert len(ran.versions) >= 5
    assert ran.versions[-1].at - ran.versions[0].at > 4 * LEASE
    assert not ran.of_kind("lost", "evicted", "suspected", "rolled-back")
