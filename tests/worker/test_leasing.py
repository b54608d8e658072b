"""When a worker asks for data, and what it makes of the answers."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from manyhands.core.messages import Asked, Leased, Span, ToHub
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
        self.asked: list[ToHub] = []
        self.answer = answer
        self.leasing = Leasing(self.progress, self.waiting, self.send, lambda: connected)

    def send(self, message: ToHub) -> None:
        self.asked.append(message)
        self.answer(self)

    def take(self) -> object:
        return self.leasing.take(0, 4, obliging=True)


def grant(*spans: Span, epoch: int = 0) -> Callable[[Worker], None]:
    return lambda worker: worker.leasing.leased(Leased(0, epoch, spans))


def test_batches_are_leased_ahead_and_counted_as_read() -> None:
    worker = Worker(grant(Span(0, 0, 0, 100)))
    assert [worker.take() for _ in range(3)] == [(Span(0, 0, a, a + 4),) for a in (0, 4, 8)]
    assert worker.asked == [Asked(0, 0, 128)]
    assert worker.progress.read == 12


@pytest.mark.parametrize("answer", [grant(), lambda worker: worker.leasing.end()], ids=["none", "evicted"])
def test_where_there_is_nothing_to_lease_the_script_goes_on(answer: Callable[[Worker], None]) -> None:
    assert Worker(answer).take() is None


def test_where_the_hub_is_away_the_script_goes_on_when_its_leases_are_used_up() -> None:
    worker = Worker(lambda _: None, connected=False)
    worker.progress.holdings[0].leased([Span(0, 0, 0, 4)])
    assert worker.take() == (Span(0, 0, 0, 4),)
    assert worker.take() is None


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
    assert worker.take() is None
    worker.progress.declare(declare(0, 100, batch_size=4, epochs=2))
    worker.progress.holdings[0].epoch = 1
    worker.answer = grant(Span(0, 1, 0, 8), epoch=1)
    assert worker.take() == (Span(0, 1, 0, 4),)
    assert worker.asked == [Asked(0, 0, 128), Asked(0, 1, 128)]
