"""The ledger: free, leased or committed, exactly once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands.core.ledger import Ledger
from manyhands.core.messages import Asked, Contribution, Dataset, SavedHolding, Span, Version
from manyhands.errors import DataError

SPEC = Dataset(0, 10, 2, 2, "dynamic", 0)


def ledger() -> Ledger:
    made = Ledger()
    made.declare(SPEC)
    return made


def loaded(before: Ledger) -> Ledger:
    after = Ledger()
    after.load(before.save())
    return after


def test_a_worker_that_is_gone_frees_what_it_leased() -> None:
    made = ledger()
    made.grant("a", Asked(0, 0, 4), rank=0, size=1)
    assert made.progress(0).leased == 4
    made.release("a")
    assert (made.progress(0).leased, made.progress(0).free) == (0, 10)


def test_an_undone_version_returns_its_samples_to_the_living_and_frees_those_of_the_dead() -> None:
    made = ledger()
    version = Version(1, 1)
    spans = {who: (Span(0, 0, start, start + 5),) for who, start in (("a", 0), ("b", 5))}
    made.commit(version, tuple(Contribution(who, 5.0, s) for who, s in spans.items()))
    assert made.epoch(0) == 1
    made.undo(version, ["a"])
    progress = made.progress(0)
    assert (made.epoch(0), progress.committed, progress.leased, progress.free) == (0, 0, 5, 5)


def test_committing_a_version_again_changes_nothing() -> None:
    made = ledger()
    for _ in range(2):
        made.commit(Version(1, 1), (Contribution("a", 5.0, (Span(0, 0, 0, 5),)),))
    assert (made.progress(0).committed, made.progress(0).twice) == (5, 0)


def test_a_saved_ledger_loads_as_it_was() -> None:
    made = ledger()
    made.grant("a", Asked(0, 0, 4), rank=0, size=1)
    assert loaded(made).save() == made.save()


def test_a_data_set_that_differs_between_workers_is_refused() -> None:
    with pytest.raises(DataError, match="length"):
        ledger().declare(Dataset(0, 11, 2, 2, "dynamic", 0))


def test_a_run_that_goes_on_from_a_checkpoint_may_have_more_epochs_and_no_other_data() -> None:
    made = Ledger()
    made.restore([SPEC], [SavedHolding(0, 2, ())])
    made = loaded(made)
    with pytest.raises(DataError, match="length 11 here and 10 in the checkpoint"):
        made.declare(Dataset(0, 11, 2, 3, "dynamic", 0))
    made.declare(Dataset(0, 10, 2, 3, "dynamic", 0))
    assert (made.done, made.epoch(0)) == (False, 2)
    assert made.progress(0).total_committed == 20
    with pytest.raises(DataError, match="epochs 4 here and 3 on the other workers"):
        made.declare(Dataset(0, 10, 2, 4, "dynamic", 0))


def test_who_has_more_queued_than_its_part_of_the_rest_gets_nothing_and_who_has_none_a_batch() -> None:
    made = ledger()
    assert made.grant("a", Asked(0, 0, 4, queued=3), rank=0, size=4, part=0.25) == ()
    assert made.grant("a", Asked(0, 0, 4, queued=2), rank=0, size=4, part=0.25) == (Span(0, 0, 0, 2),)
    assert made.grant("b", Asked(0, 0, 4), rank=1, size=4, part=0.001) == (Span(0, 0, 2, 4),)


@given(
    paces=st.lists(st.integers(1, 16), min_size=2, max_size=6),
    length=st.integers(100, 3000),
    batch=st.integers(1, 8),
)
def test_all_come_to_the_end_of_an_epoch_at_about_the_same_time(
    paces: list[int], length: int, batch: int
) -> None:
    """Each reads batch after batch at its pace, and asks for ten seconds ahead when half of that is read."""
    made, queued, ends = Ledger(), [0.0] * len(paces), [0.0] * len(paces)
    made.declare(Dataset(0, length, batch, 1, "dynamic", 0))
    clock = [(0.0, rank) for rank in range(len(paces))]
    while clock:
        now, rank = min(clock)
        clock.remove((now, rank))
        ahead = max(10 * paces[rank], batch)
        if queued[rank] < ahead / 2:
            asked = Asked(0, 0, ahead, int(queued[rank]), paces[rank])
            part = paces[rank] / sum(paces)
            queued[rank] += sum(map(len, made.grant(str(rank), asked, rank=rank, size=len(paces), part=part)))
        if queued[rank]:
            read = min(batch, queued[rank])
            queued[rank] -= read
            ends[rank] = now + read / paces[rank]
            clock.append((ends[rank], rank))
    assert made.progress(0).free == 0
    assert max(ends) - length / sum(paces) <= 2 * batch / min(paces) + 1e-6
