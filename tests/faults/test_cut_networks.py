"""Lines that are cut, whole or one way only: decided by the view in bounded time, and nothing is lost."""

import time
from pathlib import Path

import pytest
from invariants import assert_all
from lines import HUB, LEASE, Lines, lines
from training import CODED, SCRIPT, STRATEGIES, Ran

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

PACE = 0.15  # so that the data last for all of it
BOUND = 2 * LEASE + 4.0
"""Seconds from a cut until the others go on: a lease of silence, another for two members that disagree."""


def whole(net: Lines, name: str) -> None:
    net.unplug(name)


def hub_only(net: Lines, name: str) -> None:
    net.cut(name, HUB)
    net.cut(HUB, name)


def peers_only(net: Lines, name: str) -> None:
    net.cut(name, *peers_of(name))
    for peer in peers_of(name):
        net.cut(peer, name)


def words_to_the_hub(net: Lines, name: str) -> None:
    net.cut(name, HUB)


def words_of_the_hub(net: Lines, name: str) -> None:
    net.cut(HUB, name)


def words_to_peers(net: Lines, name: str) -> None:
    net.cut(name, *peers_of(name))


CUTS = (whole, hub_only, peers_only, words_to_the_hub, words_of_the_hub, words_to_peers)


def peers_of(name: str) -> set[str]:
    return {"0", "1", "2"} - {name}


def mend(net: Lines, name: str) -> None:
    net.plug_in(name)
    net.mend(name, HUB, *peers_of(name))
    for one in (HUB, *peers_of(name)):
        net.mend(one, name)


def assert_minority_committed_nothing(ran: Ran, until: int) -> None:
    """Until this view, no version was committed in one without the others."""
    sizes = {number: len(members) for number, _, members in ran.views}
    assert all(sizes[version.view] >= 2 for version in ran.versions if version.view <= until)


@pytest.mark.parametrize("strategy", [*STRATEGIES, CODED[1]])
def test_after_every_kind_of_cut_the_others_go_on_in_bounded_time_and_who_was_cut_off_comes_back_by_itself(
    tmp_path: Path, strategy: str
) -> None:
    """Each time the one of rank 0, who tells what a version is made of. At last nobody reaches the hub, for
    two leases: workers need it for more data alone, and it waits for who held the version."""
    with lines(tmp_path, SCRIPT.replace("STRATEGY", strategy), pace=PACE) as net:
        net.until("200 samples", lambda: net.committed() >= 200)
        for number, cut in enumerate(CUTS):
            name = str(number % 3)
            others, starts = peers_of(name), net.starts(name)
            assert net.rank(name) == 0
            cut(net, name)
            began = time.monotonic()
            net.until(f"{cut.__name__}: a view without it", lambda: net.members() == others, BOUND)  # noqa: B023
            before = net.committed()
            net.until(f"{cut.__name__}: more samples", lambda: net.committed() > before + 100, 10.0)  # noqa: B023
            assert time.monotonic() - began < BOUND + 10.0
            mend(net, name)
            net.until(f"{cut.__name__}: its return", lambda: net.is_back(name, starts))  # noqa: B023

        view = net.status()["view"]["number"]
        for name in "012":
            hub_only(net, name)
        time.sleep(2 * LEASE)  # what is tested is what comes of such a time
        before, silent = net.committed(), max(net.heard().values())
        for name in "012":
            mend(net, name)
        net.until("word of all", lambda: len(net.heard()) == 3 and min(net.heard().values()) > silent, BOUND)
        net.until("more samples", lambda: net.committed() > before + 100, 10.0)
        ran = net.end()
    assert_all(ran, cut=True)
    assert_minority_committed_nothing(ran, until=view)


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
