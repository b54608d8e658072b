"""What a worker has read and measured."""

from __future__ import annotations

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
    progress.holdings[0].take(samples)
    return progress


def test_a_contribution_counts_what_was_read_when_its_first_segment_was_ready() -> None:
    progress = reading(4)
    assert progress.weigh() == 4.0
    progress.holdings[0].take(2)
    progress.log("loss", 3.0)
    progress.log("loss", 1.0)
    made = progress.propose("a", b"\1", "")
    assert made == Contribution("a", 4.0, (Span(0, 0, 0, 4),), {"loss": (4.0, 2.0)}, "", b"\1")
    progress.commit(Version(1, 1), [made, Contribution("b", 1.0, (), {"loss": (8.0, 1.0)})])
    assert progress.newest == {"loss": 4.0}
    assert progress.holdings[0].total_committed == 4
    assert progress.propose("a", b"", "") == Contribution("a", 2.0, (Span(0, 0, 4, 6),))


def test_without_data_a_contribution_counts_one() -> None:
    assert Progress().propose("a", b"", "").weight == 1.0


def test_the_samples_of_a_rejected_contribution_are_read_again() -> None:
    progress = reading(4)
    made = progress.propose("a", b"\1", "inf in the gradient of w")
    assert made == Contribution("a", 0.0, (), {}, "inf in the gradient of w")
    progress.commit(Version(1, 1), [made])
    assert progress.holdings[0].take(5) == (Span(0, 0, 0, 4), Span(0, 0, 4, 5))


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
    assert joiner.held() == (Span(0, 0, 0, 2), Span(0, 0, 2, 10))
    assert joiner.weigh() == 0.0


def test_an_evicted_worker_holds_nothing_and_knows_what_was_committed() -> None:
    progress = reading(4)
    progress.commit(Version(1, 1), [progress.propose("a", b"", "")])
    progress.holdings[0].take(2)
    progress.weigh()
    progress.forget()
    assert progress.held() == ()
    assert progress.weigh() == 0.0
    assert progress.holdings[0].total_committed == 4
