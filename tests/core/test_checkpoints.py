"""When the state is kept, and by whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manyhands.core.checkpoints import LONGEST_SECONDS, RETRY_SECONDS, Checkpoints, Plan
from manyhands.core.ledger import Ledger
from manyhands.core.messages import Asked, Dataset, Kept, Save, Saved, SavedHolding, Version

MEMBERS = ("a", "b", "c")


def kept(number: int) -> Kept:
    return Kept(f"kept/v{number}", Version(number, 1), ())


def ask(checkpoints: Checkpoints, now: float, number: int, over: bool = False) -> tuple[str, Save] | None:
    return checkpoints.due(now, Version(number, 1), MEMBERS, over=over)


def test_without_a_plan_nobody_is_asked() -> None:
    assert ask(Checkpoints(), 1e9, 10**6, over=True) is None


def test_the_first_member_is_asked_whenever_so_many_versions_have_passed() -> None:
    checkpoints = Checkpoints(Plan("kept", versions=10))
    assert ask(checkpoints, 0.0, 9) is None
    assert ask(checkpoints, 1.0, 10) == ("a", Save(1, "kept", 3))
    assert ask(checkpoints, 2.0, 30) is None, "one at a time"
    assert checkpoints.saved("a", Saved(1, kept(12)), 3.0)
    assert ask(checkpoints, 4.0, 21) is None
    assert ask(checkpoints, 5.0, 22) == ("a", Save(2, "kept", 3))


def test_time_counts_from_the_last_checkpoint_and_nothing_new_is_not_kept_twice() -> None:
    checkpoints = Checkpoints(Plan("kept", seconds=60.0, keep=5))
    assert ask(checkpoints, 100.0, 1) is None
    assert ask(checkpoints, 160.0, 1) == ("a", Save(1, "kept", 5))
    checkpoints.saved("a", Saved(1, kept(1)), 161.0)
    assert ask(checkpoints, 500.0, 1) is None
    assert ask(checkpoints, 500.0, 2) is not None


def test_what_has_all_been_learned_is_kept_at_once() -> None:
    checkpoints = Checkpoints(Plan("kept", versions=1000))
    assert ask(checkpoints, 0.0, 7, over=True) is not None


def test_another_is_asked_at_once_where_one_is_gone_and_a_while_later_where_it_could_not() -> None:
    checkpoints = Checkpoints(Plan("kept", versions=1))
    assert ask(checkpoints, 0.0, 1) == ("a", Save(1, "kept", 3))
    gone = checkpoints.due(1.0, Version(1, 1), ("b", "c"), over=False)
    assert gone == ("c", Save(2, "kept", 3))
    assert not checkpoints.saved("a", Saved(1, kept(1)), 2.0), "nobody waits for that any more"
    assert checkpoints.saved("c", Saved(2, error="the disk is full"), 2.0)
    assert ask(checkpoints, 3.0, 2) is None
    assert ask(checkpoints, 2.0 + RETRY_SECONDS, 2) == ("c", Save(3, "kept", 3))


def test_who_never_answers_is_given_up() -> None:
    checkpoints = Checkpoints(Plan("kept", versions=1))
    ask(checkpoints, 0.0, 1)
    assert ask(checkpoints, LONGEST_SECONDS, 9) is None
    assert ask(checkpoints, LONGEST_SECONDS + 1, 9) == ("b", Save(2, "kept", 3))


def test_a_checkpoint_by_who_held_other_bits_then_does_not_count_and_is_removed() -> None:
    checkpoints = Checkpoints(Plan("kept", versions=1))
    for number in (1, 2):
        ask(checkpoints, float(number), number)
        checkpoints.saved("a", Saved(number, kept(number)), float(number))
    assert checkpoints.distrust("b", 3) is None
    assert checkpoints.distrust("a", 4) is None, "its bits were right when the next version was made"
    assert checkpoints.distrust("a", 3) == kept(2)
    assert checkpoints.last == kept(1)
    again = Checkpoints(checkpoints.plan, checkpoints.save())
    assert ask(again, 5.0, 3) == ("a", Save(3, "kept", 3, wrong=(2,)))


def test_a_restarted_hub_uses_no_number_twice() -> None:
    checkpoints = Checkpoints(Plan("kept", versions=1))
    ask(checkpoints, 0.0, 1)
    checkpoints.saved("a", Saved(1, kept(1)), 1.0)
    again = Checkpoints(checkpoints.plan, checkpoints.save())
    assert ask(again, 0.0, 2) == ("a", Save(2, "kept", 3))


@given(st.integers(0, 3), st.lists(st.tuples(st.integers(0, 99), st.integers(1, 100)), max_size=5))
def test_a_ledger_that_is_restored_has_committed_just_what_the_checkpoint_says(
    epoch: int, pairs: list[tuple[int, int]]
) -> None:
    committed = {at for a, b in pairs for at in range(a, b)} if epoch < 3 else set()
    spans = tuple((at, at + 1) for at in sorted(committed))
    data = Dataset(0, 101, 10, 3, "dynamic", 0)
    ledger = Ledger()
    ledger.restore([data], [SavedHolding(0, epoch, spans)])
    ledger.declare(data)
    assert ledger.progress(0).total_committed == epoch * 101 + len(committed)
    granted = ledger.grant("a", Asked(0, epoch, 1000), rank=0, size=1)
    while more := ledger.grant("a", Asked(0, epoch, 1000), rank=0, size=1):
        granted += more
    read = {at for span in granted for at in range(span.start, span.stop)}
    assert read == (set(range(101)) - committed if epoch < 3 else set())
