"""A cut between members ends, and costs as few places as can be."""

from __future__ import annotations

from manyhands.core.reach import Reach

FOUR = ("a", "b", "c", "d")


def test_nobody_goes_before_the_patience_is_over() -> None:
    reach = Reach()
    reach.report("a", ["b"], 0.0)
    assert reach.worst(FOUR, 10.0, 10.0) is None
    assert reach.worst(FOUR, 10.1, 10.0) == ("b", ["a"])


def test_a_line_that_heals_costs_nothing() -> None:
    reach = Reach()
    reach.report("a", ["b"], 0.0)
    reach.report("a", [], 9.0)
    reach.report("a", ["b"], 9.5)
    assert reach.worst(FOUR, 12.0, 10.0) is None


def test_who_is_cut_off_from_most_goes_whoever_says_so() -> None:
    reach = Reach()
    reach.report("b", ["a"], 0.0)
    reach.report("a", ["d"], 0.0)
    assert reach.worst(FOUR, 11.0, 10.0) == ("a", ["b", "d"])


def test_a_cut_from_somebody_who_is_no_member_does_not_count() -> None:
    reach = Reach()
    reach.report("a", ["gone"], 0.0)
    assert reach.worst(FOUR, 11.0, 10.0) is None


def test_of_two_who_lost_each_other_first_the_one_that_lost_another_since_goes() -> None:
    reach = Reach()
    reach.report("a", ["b"], 0.0)
    reach.report("a", ["b", "c", "d"], 0.5)
    assert reach.worst(FOUR, 10.1, 10.0) == ("a", ["b", "c", "d"])


def test_who_is_cut_off_again_and_again_waits_ever_longer_for_a_place_and_not_after_a_calm() -> None:
    reach, waits, now = Reach(), list[float](), 0.0
    for _ in range(8):
        reach.bar("a", now, 10.0)
        waits.append(reach.barred("a") - now)
        now = reach.barred("a") + 20.0
    assert waits == [0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 160.0, 160.0]
    assert reach.barred("b") == 0.0
    reach.bar("a", now + 80.0, 10.0)
    assert reach.barred("a") == now + 80.0
