"""Who combines what for whom, whatever members share a host."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from manyhands.core.hosts import Hosts

MACHINES = st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=9)


@given(MACHINES)
def test_every_contribution_is_in_every_combined_slice_once(machines: list[str]) -> None:
    hosts, ranks = Hosts(machines), range(len(machines))
    for slice_ in ranks:
        inputs = hosts.inputs(slice_, slice_)
        assert sorted(chain.from_iterable(it.ranks for it in inputs)) == [*ranks]
        for sender, covered in inputs:
            if len(covered) > 1:
                gathered = hosts.inputs(sender, slice_)
                assert slice_ in hosts.combines(sender)
                assert [it.sender for it in gathered] == [*covered]


@given(MACHINES)
def test_each_slice_of_a_contribution_goes_to_whom_combines_it(machines: list[str]) -> None:
    hosts, ranks = Hosts(machines), range(len(machines))
    for rank in ranks:
        sent = dict(hosts.gives(rank))
        kept = [s for s in hosts.combines(rank) if s not in sent]
        assert sorted([*sent, *kept]) == [*ranks]
        for slice_, to in sent.items():
            assert slice_ in hosts.combines(to)
            assert rank in [it.sender for it in hosts.inputs(to, slice_)]


@given(MACHINES)
def test_every_member_is_given_each_combined_slice_once_by_its_source(machines: list[str]) -> None:
    hosts, ranks = Hosts(machines), range(len(machines))
    for slice_ in ranks:
        given_by = [(taker, rank) for rank in ranks for taker in hosts.takers(rank, slice_)]
        assert sorted(given_by) == [(r, hosts.source(r, slice_)) for r in ranks if r != slice_]


@given(MACHINES)
def test_each_slice_crosses_the_line_of_a_host_once_each_way(machines: list[str]) -> None:
    hosts, ranks = Hosts(machines), range(len(machines))
    for slice_ in ranks:
        home = hosts.beside(slice_)
        came = [it.sender for it in hosts.inputs(slice_, slice_) if it.sender not in home]
        went = [rank for rank in hosts.takers(slice_, slice_) if rank not in home]
        assert sorted(went) == came
        assert len({hosts.beside(rank) for rank in came}) == len(came) == len(hosts.hosts) - 1


@given(MACHINES)
def test_the_members_of_a_host_gather_as_much_as_each_other(machines: list[str]) -> None:
    hosts = Hosts(machines)
    for ranks in hosts.hosts:
        foreign = [s for s in range(len(machines)) if s not in ranks]
        gathered = Counter(hosts.gatherer(ranks[0], s) for s in foreign)
        counts = [gathered[rank] for rank in ranks]
        assert max(counts) - min(counts) <= 1


def test_members_without_a_machine_are_each_on_a_host_of_their_own() -> None:
    hosts = Hosts(["", "", "m", "m"])
    assert hosts.hosts == ((0,), (1,), (2, 3))
    assert hosts.gives(1) == ((2, 2), (3, 3), (0, 0))
    assert hosts.gives(2) == ((3, 3), (1, 3))
    assert hosts.combines(3) == (1, 3)
