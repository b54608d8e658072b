"""What a worker has read and measured."""

from __future__ import annotations

import pytest

from manyhands.core.messages import Contribution, Span, Version
from manyhands.sharing.tree import pack, unpack
from manyhands.worker.batches import declare
from manyhands.worker.progress import Progress
from manyhands.worker.stopping import StopRule


def reading(samples: int) -> Progress:
    """Of 10 samples in 2 epochs all are leased, and so many read."""
    progress = Progress()
    progress.declare(declare(0, 10, epochs=2))
    progress.holdings[0].leased([Span(0, 0, 0, 10)])
    progress.take(0, samples)
    return progress


def test_a_contribution_counts_what_was_read_when_its_first_segment_was_ready() -> None:
    progress = reading(4)
    assert progress.weigh() == 4.0
    progress.take(0, 2)
    progress.log("loss", 3.0)
    progress.log("loss", 1.0)
    made = progress.propose("a", b"\1", "")
    assert made == Contribution("a", 4.0, (Span(0, 0, 0, 4),), {"loss": (4.0, 2.0)}, "", b"\1", 6)
    progress.commit(Version(1, 1), [made, Contribution("b", 1.0, (), {"loss": (8.0, 1.0)})])
    assert progress.newest == {"loss": 4.0}
    assert progress.holdings[0].total_committed == 4
    assert progress.propose("a", b"", "") == Contribution("a", 2.0, (Span(0, 0, 4, 6),), read=6)


def test_what_is_learned_twice_from_a_batch_weighs_as_much_as_that_batch_each_time() -> None:
    progress = reading(4)
    for number in (1, 2):
        made = progress.propose("a", b"", "")
        assert (made.weight, made.spans) == (4.0, (Span(0, 0, 0, 4),) if number == 1 else ())
        progress.commit(Version(number, 1), [made])
    progress.take(0, 3)
    assert progress.propose("a", b"", "").weight == 3.0


def test_only_who_was_given_nothing_weighs_nothing() -> None:
    progress = reading(4)
    progress.commit(Version(1, 1), [progress.propose("a", b"", "")])
    progress.rest(0)
    assert progress.propose("a", b"", "") == Contribution("a", 0.0, read=4)


def test_local_steps_on_one_batch_weigh_what_it_does_however_many_rounds_they_take() -> None:
    progress = reading(4)
    progress.learned()
    progress.commit(Version(1, 1), [progress.propose("a", b"", "")])
    progress.learned()
    assert progress.propose("a", b"", "").weight == 4.0


def test_it_is_counted_how_often_in_a_row_there_was_nothing_and_nothing_was_learned() -> None:
    progress = reading(4)
    progress.declare(declare(1, 30))
    assert [progress.rest(0), progress.rest(0), progress.rest(1), progress.rest(0)] == [1, 2, 1, 1]
    progress.learned()
    assert progress.rest(0) == 1


@pytest.mark.parametrize("idle", [False, True])
def test_what_is_evaluated_between_two_rounds_is_committed_and_weighs_nothing(idle: bool) -> None:
    progress = reading(4)
    progress.commit(Version(1, 1), [progress.propose("a", b"", "")])
    progress.declare(declare(1, 30))
    progress.holdings[1].leased([Span(1, 0, 0, 30)])
    progress.take(1, 30)
    if idle:
        progress.rest(0)
    else:
        progress.take(0, 2)
    made = progress.propose("a", b"", "")
    assert made.weight == (0.0 if idle else 2.0)
    assert Span(1, 0, 0, 30) in made.spans


def test_local_steps_weigh_what_they_learned_from_though_something_else_was_read_since() -> None:
    progress = reading(4)
    progress.learned()
    progress.declare(declare(1, 30))
    progress.holdings[1].leased([Span(1, 0, 0, 30)])
    progress.take(1, 30)
    assert progress.propose("a", b"", "").weight == 4.0


def test_without_data_a_contribution_counts_one() -> None:
    assert Progress().propose("a", b"", "").weight == 1.0


def test_the_samples_of_a_rejected_contribution_are_read_again() -> None:
    progress = reading(4)
    made = progress.propose("a", b"\1", "inf in the gradient of w")
    assert made == Contribution("a", 0.0, (), {}, "inf in the gradient of w", read=4)
    progress.commit(Version(1, 1), [made])
    assert progress.holdings[0].take(5) == (Span(0, 0, 0, 4), Span(0, 0, 4, 5))


def test_what_a_rejected_contribution_measured_is_in_no_mean() -> None:
    progress = reading(4)
    progress.log("loss", float("nan"))
    made = progress.propose("a", b"", "NaN in the gradient of w")
    progress.commit(Version(1, 1), [made, Contribution("b", 1.0, (), {"loss": (2.0, 1.0)})])
    assert progress.newest == {"loss": 2.0}


def test_a_joiner_knows_what_is_committed_and_where_the_stop_rules_stand() -> None:
    donor, joiner = reading(4), reading(2)
    for progress in (donor, joiner):
        progress.rules.append(StopRule("loss", below=1.0))
    donor.log("loss", 0.5)
    donor.commit(Version(1, 1), [donor.propose("a", b"", "")])
    joiner.weigh()
    joiner.install(unpack(pack(donor.capture())))
    assert joiner.stopped == donor.stopped != ""
    assert joiner.holdings[0].total_committed == 4
    assert joiner.held() == (Span(0, 0, 4, 10),)
    assert joiner.weigh() == 0.0


def test_an_evicted_worker_holds_nothing_and_knows_what_was_committed() -> None:
    progress = reading(4)
    progress.commit(Version(1, 1), [progress.propose("a", b"", "")])
    progress.take(0, 2)
    progress.weigh()
    assert progress.read == 6
    progress.forget()
    assert progress.read == 0  # the hub adds up what all incarnations have read
    assert progress.held() == ()
    assert progress.weigh() == 0.0
    assert progress.holdings[0].total_committed == 4
