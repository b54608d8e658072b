"""The places of workers that start together."""

from __future__ import annotations

import pytest

from manyhands.core.membership import Membership, Totals
from manyhands.core.messages import Beat, Hello, Member, View


def meet(membership: Membership, name: str, incarnation: str = "") -> int:
    hello = Hello("r", incarnation or name, name, 1, "h", 1, "software", None, (), None)
    return membership.meet(hello, 0.0)[0].place


@pytest.mark.parametrize("names", ["012", "210", "102"])
def test_a_worker_with_a_number_for_a_name_has_that_place_whoever_joined_before(names: str) -> None:
    membership = Membership(lease=10.0, grace=1.0)
    assert [meet(membership, name) for name in names] == [int(name) for name in names]


def test_workers_with_other_names_have_their_places_in_the_order_of_joining() -> None:
    membership = Membership(lease=10.0, grace=1.0)
    assert [meet(membership, name) for name in ("host-c", "host-a", "host-b")] == [0, 1, 2]


def test_no_two_living_workers_have_the_same_place() -> None:
    membership = Membership(lease=10.0, grace=1.0)
    assert [meet(membership, name) for name in ("host", "0", "2", "1", "another")] == [0, 1, 2, 3, 4]


def test_a_worker_that_is_started_again_or_comes_back_has_its_place_again() -> None:
    membership = Membership(lease=10.0, grace=1.0)
    assert [meet(membership, name) for name in ("host-a", "host-b", "2")] == [0, 1, 2]
    assert meet(membership, "2", "2, started again") == 2
    assert meet(membership, "host-a", "host-a, started again") == 0
    assert meet(membership, "host-b") == 1


def test_the_place_of_a_worker_that_is_gone_is_free() -> None:
    membership = Membership(lease=10.0, grace=1.0)
    meet(membership, "host-a")
    meet(membership, "host-b")
    membership.workers["host-a"].state = "left"
    assert meet(membership, "host-c") == 0


def test_places_outlast_the_hub() -> None:
    before, after = Membership(lease=10.0, grace=1.0), Membership(lease=10.0, grace=1.0)
    meet(before, "host-a")
    meet(before, "host-b")
    before.workers["host-a"].state = "left"
    after.load(before.save(), before.forgotten, None)
    assert meet(after, "host-b") == 1


def test_who_opens_the_first_view_has_its_place_as_its_rank() -> None:
    membership = Membership(lease=10.0, grace=1.0)
    for name in ("host-b", "2", "host-a"):
        meet(membership, name)
    for worker in membership.workers.values():
        worker.state = "ready"
    assert [worker.name for worker in membership.candidates()] == ["host-b", "host-a", "2"]


def test_who_is_gone_is_forgotten_in_time_but_not_what_it_has_sent_and_read() -> None:
    membership = Membership(lease=10.0, grace=1.0)
    membership.remembered = 2
    for time, name in enumerate("0123"):
        worker, _ = membership.meet(Hello("r", name, name, 1, "h", 1, "software", None, (), None), time)
        worker.beat, worker.read = Beat(sent=1, received=2), 10**time
        worker.state = "joining" if name == "0" else "lost"
        before = membership.totals
        membership.forget()
        assert membership.totals == before
    assert [*membership.workers] == ["0", "2", "3"]
    assert membership.totals == Totals(sent=4, received=8, read=1111)


def test_who_is_gone_is_not_forgotten_while_it_is_in_the_view() -> None:
    membership = Membership(lease=10.0, grace=1.0)
    membership.remembered = 0
    membership.adopt(View(1, (Member("0", "0", "h", 1),)), 0.0)
    membership.workers["0"].state = "lost"
    membership.forget()
    assert [worker.incarnation for worker in membership.members()] == ["0"]
