"""When a worker asks for data, and what it makes of the answers."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from manyhands.core.messages import Asked, Leased, Span, ToHub, Version
from manyhands.errors import RunLost
from manyhands.worker.batches import Ended, declare
from manyhands.worker.leasing import Leasing
from manyhands.worker.progress import Progress
from manyhands.worker.waiting import Waiting


class Worker:
    """One that partitions 100 samples in batches of 4; `answer` is called where it asks the hub."""

    def __init__(self, answer: Callable[[Worker], None], *, connected: bool = True) -> None:
        self.waiting, self.progress = Waiting("0"), Progress()
        self.progress.declare(declare(0, 100, batch_size=4))
        self.asked: list[Asked] = []
        self.answer = answer
        self.looked = 0
        self.leasing = Leasing(self.progress, self.waiting, self.send, lambda: connected)

    def send(self, message: ToHub) -> None:
        assert isinstance(message, Asked)
        self.asked.append(message)
        self.answer(self)

    @property
    def wants(self) -> list[tuple[int, int, int]]:
        return [(asked.dataset, asked.epoch, asked.samples) for asked in self.asked]

    def take(self, wanted: Callable[[], object] = lambda: False) -> object:
        return self.leasing.take(0, 4, obliging=True, wanted=wanted)

    def wanted(self) -> bool:
        """When it has been looked at a few times."""
        self.looked += 1
        return self.looked >= 8


def grant(*spans: Span, epoch: int = 0) -> Callable[[Worker], None]:
    return lambda worker: worker.leasing.leased(Leased(0, epoch, spans))


def test_batches_are_leased_ahead_and_counted_as_read() -> None:
    worker = Worker(grant(Span(0, 0, 0, 100)))
    assert [worker.take() for _ in range(3)] == [(Span(0, 0, a, a + 4),) for a in (0, 4, 8)]
    assert worker.wants == [(0, 0, 32)]
    assert worker.progress.read == 12


def test_who_is_refused_waits_until_others_need_it() -> None:
    worker = Worker(grant())
    assert worker.take(worker.wanted) is None
    assert worker.looked >= 8
    assert worker.wants.count((0, 0, 32)) > 1


def test_who_is_called_waits_for_the_answer_of_the_hub_first() -> None:
    def answer(worker: Worker) -> None:
        threads.append(threading.Thread(target=late, args=[worker]))
        threads[-1].start()

    def late(worker: Worker) -> None:
        with worker.waiting.changed:
            worker.leasing.leased(Leased(0, 0, (Span(0, 0, 0, 4),)))
            worker.waiting.changed.notify_all()

    threads: list[threading.Thread] = []
    assert Worker(answer).take(lambda: True) == (Span(0, 0, 0, 4),)
    threads[0].join()


def test_who_is_refused_asks_until_there_is_something() -> None:
    answers = iter([grant(), grant(), grant(Span(0, 0, 96, 100))])
    worker = Worker(lambda worker: next(answers)(worker))
    assert worker.take() == (Span(0, 0, 96, 100),)
    assert len(worker.asked) == 3


def test_who_is_evicted_while_it_waits_goes_on_without_data() -> None:
    assert Worker(lambda worker: worker.leasing.end()).take() is None


def test_where_the_hub_is_away_and_the_leases_are_used_up_the_script_waits_until_others_need_it() -> None:
    worker = Worker(lambda _: None, connected=False)
    worker.progress.holdings[0].leased([Span(0, 0, 0, 4)])
    assert worker.take() == (Span(0, 0, 0, 4),)
    worker.progress.commit(Version(1, 1), [worker.progress.propose("w", b"", "")])
    assert worker.take(worker.wanted) is None
    assert worker.looked >= 8


def test_what_is_only_evaluated_ends_when_no_more_of_it_is_to_be_had() -> None:
    worker = Worker(grant())
    worker.progress.holdings[0].leased([Span(0, 0, 0, 4)])
    assert worker.take() == (Span(0, 0, 0, 4),)
    assert worker.take() == Ended()


def test_what_was_learned_from_does_not_end_before_all_of_it_is_committed() -> None:
    worker = Worker(grant())
    worker.progress.holdings[0].leased([Span(0, 0, 0, 4)])
    assert worker.take() == (Span(0, 0, 0, 4),)
    worker.progress.learned()
    assert worker.progress.unshared(0)
    assert worker.take(lambda: worker.progress.unshared(0)) is None


def test_a_grant_of_another_epoch_is_no_data() -> None:
    worker = Worker(grant())
    worker.leasing.leased(Leased(0, 1, (Span(0, 1, 0, 4),)))
    assert worker.progress.holdings[0].queue == []


def test_who_waits_for_a_lease_hears_of_the_end_of_the_run() -> None:
    worker = Worker(lambda _: None)
    ends = threading.Thread(target=lambda: worker.waiting.fail(RunLost("all are gone")))
    ends.start()
    with pytest.raises(RunLost):
        worker.take()
    ends.join()


def test_the_end_of_the_last_epoch_ends_the_batches() -> None:
    worker = Worker(grant())
    worker.progress.holdings[0].epoch = 1
    assert worker.take() == Ended("")


def test_what_was_refused_in_an_epoch_is_asked_for_at_once_in_the_next() -> None:
    worker = Worker(grant())
    assert worker.take(lambda: worker.asked) is None
    worker.progress.declare(declare(0, 100, batch_size=4, epochs=2))
    worker.progress.holdings[0].epoch = 1
    worker.answer = grant(Span(0, 1, 0, 8), epoch=1)
    assert worker.take() == (Span(0, 1, 0, 4),)
    assert worker.wants == [(0, 0, 32), (0, 1, 32)]


def test_what_the_hub_has_not_answered_is_asked_again_when_it_is_back() -> None:
    def away(worker: Worker) -> None:
        worker.answer = grant(Span(0, 0, 0, 8))
        worker.leasing.repeat()

    worker = Worker(away)
    assert worker.take() == (Span(0, 0, 0, 4),)
    assert worker.wants[:2] == [(0, 0, 32)] * 2
    asked = len(worker.asked)
    worker.leasing.repeat()
    assert len(worker.asked) == asked
