"""What a worker has read and measured."""

from __future__ import annotations

from functools import partial

import pytest

from manyhands.core.messages import Contribution, Dataset, Span, Version
from manyhands.sharing.tree import pack, unpack
from manyhands.worker.batches import Batches, declare
from manyhands.worker.datasets import source_for
from manyhands.worker.progress import Progress
from manyhands.worker.stopping import StopRule


def reading(samples: int) -> Progress:
    """Of 10 samples in 2 epochs all are leased, and so many read."""
    progress = Progress()
    progress.declare(declare(0, 10, epochs=2))
    progress.holdings[0].leased([Span(0, 0, 0, 10)])
    progress.take(0, samples)
    return progress


def evaluate(progress: Progress) -> None:
    """Read 30 samples of another data set."""
    progress.declare(declare(1, 30))
    progress.holdings[1].leased([Span(1, 0, 0, 30)])
    progress.take(1, 30)


def test_a_contribution_counts_what_was_read_when_its_first_segment_was_ready() -> None:
    progress = reading(4)
    progress.learned()
    assert progress.weigh() == 4.0
    progress.take(0, 2)
    progress.log("loss", 3.0)
    progress.log("loss", 1.0)
    made = progress.propose("a", b"\1", "")
    assert made == Contribution("a", 4.0, (Span(0, 0, 0, 4),), {"loss": (4.0, 2.0)}, "", b"\1", 6, 0)
    progress.commit(Version(1, 1), [made, Contribution("b", 1.0, (), {"loss": (8.0, 1.0)})])
    assert progress.newest == {"loss": 4.0}
    assert progress.holdings[0].total_committed == 4
    progress.learned()
    assert progress.propose("a", b"", "") == Contribution("a", 2.0, (Span(0, 0, 4, 6),), read=6, source=0)


def test_what_is_learned_twice_from_a_batch_weighs_as_much_as_that_batch_each_time() -> None:
    progress = reading(4)
    for number in (1, 2):
        progress.learned()
        made = progress.propose("a", b"", "")
        assert (made.weight, made.spans) == (4.0, (Span(0, 0, 0, 4),) if number == 1 else ())
        progress.commit(Version(number, 1), [made])
    progress.take(0, 3)
    progress.learned()
    assert progress.propose("a", b"", "").weight == 3.0


@pytest.mark.parametrize("given", [True, False])
def test_who_learned_nothing_or_from_a_batch_given_again_weighs_nothing(given: bool) -> None:
    progress = reading(4)
    progress.learned()
    progress.commit(Version(1, 1), [progress.propose("a", b"", "")])
    if given:
        progress.rest(0)
        progress.learned()
    assert progress.propose("a", b"", "") == Contribution("a", 0.0, read=4)


def test_local_steps_on_one_batch_weigh_what_it_does_however_many_rounds_they_take() -> None:
    progress = reading(4)
    progress.learned()
    progress.commit(Version(1, 1), [progress.propose("a", b"", "")])
    progress.learned()
    assert progress.propose("a", b"", "").weight == 4.0


def test_what_is_shared_bit_by_bit_weighs_what_the_batch_last_learned_from_does() -> None:
    progress = reading(4)
    progress.learned()
    progress.commit(Version(1, 1), [progress.propose("a", b"", "")])
    evaluate(progress)
    progress.learned(earlier=True)
    made = progress.propose("a", b"", "")
    assert (made.weight, made.source) == (4.0, 0)
    assert Span(1, 0, 0, 30) in made.spans
    assert not progress.studied(1)


@pytest.mark.parametrize("ended", [True, False])
def test_within_a_loop_a_script_learns_from_its_batch_though_it_evaluated_others_since(ended: bool) -> None:
    progress = reading(4)
    evaluate(progress)
    progress.put_down(1, ended=ended)
    progress.learned()
    assert progress.propose("a", b"", "").weight == 4.0
    assert not progress.studied(1)


def test_a_loop_that_is_left_after_each_batch_is_learned_from() -> None:
    progress = reading(4)
    progress.put_down(0, ended=False)
    progress.learned()
    assert progress.propose("a", b"", "").source == 0


def test_after_its_loops_a_script_learns_from_data_of_its_own() -> None:
    progress = reading(4)
    progress.put_down(0)
    progress.learned()
    made = progress.propose("a", b"", "")
    assert (made.source, made.weight) == (None, 1.0)


def test_all_know_when_the_data_that_anybody_learns_from_are_done() -> None:
    first, second = reading(4), reading(6)
    for progress in (first, second):
        progress.declare(declare(1, 30))
        progress.holdings[0].epoch = 1
    first.learned()
    whole = Contribution("b", 6.0, (Span(0, 1, 4, 10),), source=0)
    made = [Contribution("a", 4.0, (Span(0, 1, 0, 4),), source=0), whole]
    for progress in (first, second):
        progress.commit(Version(7, 1), made)
        progress.commit(Version(8, 1), [Contribution("a", 0.0, (Span(1, 0, 0, 9),))])
        assert progress.done_at == 7
        progress.commit(Version(9, 1), [Contribution("a", 9.0, (Span(1, 0, 9, 18),), source=1)])
        assert progress.done_at is None
        assert progress.studied(1)
        progress.commit(Version(10, 1), [Contribution("b", 12.0, (Span(1, 0, 18, 30),), source=1)])
        assert progress.done_at == 10
    joiner = Progress()
    joiner.install(unpack(pack(first.capture())))
    assert (joiner.done_at, joiner.studied(1)) == (10, True)


def test_it_is_counted_how_often_in_a_row_there_was_nothing_and_nothing_was_learned() -> None:
    progress = reading(4)
    progress.declare(declare(1, 30))
    assert [progress.rest(0), progress.rest(0), progress.rest(1), progress.rest(0)] == [1, 2, 1, 1]
    progress.learned()
    assert progress.rest(0) == 1


@pytest.mark.parametrize("idle", [False, True])
def test_what_is_evaluated_between_two_rounds_is_committed_and_weighs_nothing(idle: bool) -> None:
    progress = reading(4)
    progress.learned()
    progress.commit(Version(1, 1), [progress.propose("a", b"", "")])
    evaluate(progress)
    if idle:
        progress.rest(0)
    else:
        progress.take(0, 2)
    progress.learned()
    made = progress.propose("a", b"", "")
    assert made.weight == (0.0 if idle else 2.0)
    assert Span(1, 0, 0, 30) in made.spans


def test_local_steps_weigh_what_they_learned_from_though_something_else_was_read_since() -> None:
    progress = reading(4)
    progress.learned()
    evaluate(progress)
    assert progress.propose("a", b"", "").weight == 4.0


def test_without_data_a_contribution_counts_one() -> None:
    progress = Progress()
    progress.learned()
    assert progress.propose("a", b"", "").weight == 1.0


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


def test_a_data_set_that_is_partitioned_late_begins_with_what_the_pool_has_committed_of_it() -> None:
    data = [Dataset(index, 10, 2, 2, "dynamic", 0) for index in range(2)]
    donor, joiner = Progress(), Progress()
    for one in data:
        donor.declare(one)
    joiner.declare(data[0])
    for number, (a, b) in enumerate([(0, 4), (4, 10), (0, 3)]):
        span = Span(1, 0 if number < 2 else 1, a, b)
        version, made = Version(number + 1, 1), (Contribution("a", 1.0, (span,)),)
        donor.commit(version, made)
        if number == 1:
            joiner.install(donor.capture())
            assert joiner.saved() == donor.saved()
            assert joiner.datasets() == donor.datasets(), "also what it has yet to partition"
        elif number > 1:
            joiner.commit(version, made)
    joiner.declare(data[1])
    assert joiner.saved() == donor.saved()
    assert joiner.holdings[1].total_committed == 13


class Loops:
    """What the loops over batches need of the pool: all has been leased."""

    size = 1

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.take, self.put_down = progress.take, partial(progress.put_down, ended=False)

    def over(self, dataset: int) -> Batches:
        spec = Dataset(dataset, 4, 1, 1, "dynamic", None)
        self._progress.declare(spec)
        self._progress.holdings[dataset].leased([Span(dataset, 0, 0, 4)])
        return Batches(source_for(range(4)), spec, self)

    def peek(self, dataset: int, samples: int) -> tuple[Span, ...]:  # noqa: ARG002
        return ()

    def committed(self, dataset: int) -> int:
        return self._progress.holdings[dataset].total_committed


def fail(progress: Progress, *, while_evaluating: bool) -> None:
    """Raise within a loop that evaluates between two steps of one that learns, or with the next batch."""
    loops = Loops(progress)
    test = loops.over(1)
    for number, _ in enumerate(loops.over(0)):
        if number == 1:
            raise ValueError
        progress.learned()
        for _ in test:
            if while_evaluating:
                raise ValueError
            break


@pytest.mark.parametrize("evaluating", [True, False])
def test_what_fails_while_it_is_evaluated_between_two_steps_is_laid_to_the_sample_that_was_evaluated(
    evaluating: bool,
) -> None:
    """By the time the end of the share asks, an exception has left both loops, the inner one first."""
    progress = Progress()
    with pytest.raises(ValueError):
        fail(progress, while_evaluating=evaluating)
    assert progress.batch == ((Span(1, 0, 0, 1),) if evaluating else (Span(0, 0, 1, 2),))


def test_a_loop_that_has_come_to_its_end_is_to_blame_for_nothing() -> None:
    progress = reading(4)
    evaluate(progress)
    progress.put_down(1, ended=True)
    progress.put_down(1, ended=False)
    assert progress.batch == (Span(0, 0, 0, 4),)
