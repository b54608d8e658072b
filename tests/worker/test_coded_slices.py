"""Encoded slices of one incarnation while views change, over an exchange that only keeps what is sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from arriving import arrive
from lone_part import Line, Rounds

from manyhands.core.messages import (
    Contribution,
    Freeze,
    Member,
    Opened,
    Recovered,
    Version,
    View,
)
from manyhands.core.moves import Heard, Propose, Ready
from manyhands.core.rounds import subset_of
from manyhands.exchange.wire import DType, Header, Kind
from manyhands.sharing.combine import mean
from manyhands.sharing.encode.chain import Encoding, ErrorFeedback, chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.encode.topk import TopK
from manyhands.sharing.strategy import EveryStep
from manyhands.worker.driving import driver_for
from manyhands.worker.part import Part
from manyhands.worker.progress import Progress
from manyhands.worker.waiting import Waiting

N = 3000
DEADLINE = 20.0
FOUR_BITS = chain(ErrorFeedback(), Quantize(4))
VECTOR = np.random.default_rng(0).standard_normal(N).astype(np.float32)


class Worker:
    """A part of EveryStep with `N` elements, whose only segment is cut into equal slices."""

    def __init__(self, name: str, encoding: Encoding = FOUR_BITS) -> None:
        self.line, strategy = Line(), EveryStep(encode=encoding)
        self.encoding, self.waiting = encoding, Waiting(name, patience=0.01)
        self.driver = driver_for({"w": np.zeros(N, np.float32)}, None, strategy)
        self.driver.attach(Rounds())
        self.part = Part(
            name,
            self.driver,
            Progress(),
            self.line,  # type: ignore[arg-type]
            None,
            strategy,
            "run-1",
            self.waiting,
            lambda _: None,
        )

    def enters(self, number: int, machines: str, names: str) -> None:
        """A view opens of members with names of a letter, each on a machine with such a one."""
        members = tuple(Member(x, x, "127.0.0.1", 1, m) for x, m in zip(names, machines, strict=True))
        self.part.tell(Opened(View(number, members), 0, tuple(names), "so it is", Version(0, 0)))

    @property
    def view(self) -> int:
        view = self.part.participant.view
        return -1 if view is None else view.number

    def header(self, slice_: int, *, of: int, ranks: tuple[int, ...], coded: bool = True) -> Header:
        """Of what these contribute to one of so many slices."""
        length = self.encoding.nbytes(N // of, np.dtype(np.float32)) if coded else 4 * N // of
        dtype, subset = DType.BYTES if coded else DType.FLOAT32, subset_of(ranks)
        return Header(Kind.CONTRIBUTION, 1, 0, 0, slice_, dtype, float(len(ranks)), subset, length=length)

    def gets(self, peer: str, header: Header, values: np.ndarray) -> None:
        """A slice of a peer's contribution."""
        place = self.part.place(peer, header)
        assert place is not None
        coded = header.dtype is DType.BYTES
        place[:] = (encoded(self.encoding, values) if coded else values.view(np.uint8)).data
        arrive(self.part, peer, header, place)

    def sent(self, peer: str, kind: Kind, view: int) -> list[bytes]:
        slices = self.line.slices(kind)
        return [payload for to, header, payload in slices if (to, header.view) == (peer, view)]


def encoded(encoding: Encoding, values: np.ndarray) -> np.ndarray:
    """By a worker that has lost nothing yet."""
    out = np.empty(encoding.nbytes(len(values), values.dtype), np.uint8)
    residual = (np.zeros_like(values), np.empty_like(values)) if encoding.feedback else None
    encoding.encode(values, out, residual)
    return out


@contextmanager
def view_2_before(worker: Worker, method: str, machines: str, names: str) -> Iterator[None]:
    """A view opens, brought by another thread, just when the slices of a worker are about to do this.

    If they are so under the lock, it has to wait until they do not hold that any more.
    """
    slices, changed = worker.part._slices, worker.waiting.changed
    does, looked, free = getattr(slices, method), threading.Event(), threading.Event()

    def change() -> None:
        if changed.acquire(blocking=False):
            changed.release()
            free.set()
        looked.set()
        worker.part.tell(Freeze(2, False, "somebody is lost"))
        worker.enters(2, machines, names)

    opens = threading.Thread(target=change)

    def first(*args: object, **kwargs: object) -> object:
        setattr(slices, method, does)
        opens.start()
        assert looked.wait(DEADLINE)
        if free.is_set():
            with changed:
                assert changed.wait_for(lambda: worker.view == 2, DEADLINE)
        return does(*args, **kwargs)

    setattr(slices, method, first)
    yield
    opens.join(DEADLINE)
    assert worker.view == 2


def combines_while_view_2_opens(machines: str, names: str) -> Worker:
    """The own slice of "c", in a view of three hosts."""
    c = Worker("c")
    c.enters(1, "ABC", "abc")
    c.driver.contribution[:] = VECTOR
    c.part.tell(Ready(0, 1.0))
    c.gets("a", c.header(2, of=3, ranks=(0,)), np.ones(N // 3, np.float32))
    with view_2_before(c, "_supersede", machines, names):
        c.gets("b", c.header(2, of=3, ranks=(1,)), np.ones(N // 3, np.float32))
    return c


@pytest.mark.parametrize(("machines", "names"), [("BC", "bc"), ("ACB", "acb"), ("CCC", "abc"), ("C", "c")])
def test_a_view_that_opens_while_a_mean_is_taken_ends_no_thread(machines: str, names: str) -> None:
    c = combines_while_view_2_opens(machines, names)
    assert not c.line.slices(Kind.COMBINED)


def test_what_is_encoded_while_a_view_opens_leaves_the_residual_of_that_view_alone() -> None:
    c, fresh = combines_while_view_2_opens("BC", "bc"), Worker("c")
    fresh.driver.contribution[:] = VECTOR
    fresh.enters(2, "BC", "bc")
    fresh.part.tell(Ready(0, 1.0))
    assert c.sent("b", Kind.CONTRIBUTION, 2) == fresh.sent("b", Kind.CONTRIBUTION, 2) != []


def rolled_forward(contributions: Sequence[Contribution]) -> Worker:
    """Rank 2 of a, b and c; a is lost, and b has a version that was made of these."""
    c = Worker("c")
    c.enters(1, "ABC", "abc")
    c.driver.contribution[:] = VECTOR
    c.part.tell(Ready(0, 5.0))
    c.part.tell(Propose(Contribution("c", 5.0)))
    c.part.tell(Freeze(2, False, "a is lost"))
    members = tuple(Member(x, x, "127.0.0.1", 1, x) for x in "bc")
    c.part.tell(Opened(View(2, members), 1, ("b",), "a is lost", Version(1, 1), ("b",)))
    c.part.tell(Heard("b", Recovered(2, 0, Version(1, 1), tuple(contributions))))
    if any(contribution.weight for contribution in contributions):
        whole = Header(Kind.WHOLE, 2, 0, 0, 0, DType.FLOAT32, length=4 * N)
        place = c.part.place("b", whole)
        assert place is not None
        arrive(c.part, "b", whole, place)
    assert c.part.participant.version == Version(1, 1)
    c.line.sent.clear()
    c.part.tell(Ready(0, 5.0))
    return c


@pytest.mark.parametrize(
    ("weights", "counted"), [((5, 0, 5), True), ((0, 0, 5), True), ((5, 5, 0), False), ((0, 5, 0), False)]
)
def test_what_a_worker_lost_counts_when_it_did_though_the_view_is_another_by_then(
    weights: tuple[float, ...], counted: bool
) -> None:
    c = rolled_forward([Contribution(name, weight) for name, weight in zip("abc", weights, strict=True)])
    half = c.sent("b", Kind.CONTRIBUTION, 2)[0]
    assert (half != encoded(FOUR_BITS, VECTOR[: N // 2]).tobytes()) is counted


def test_a_contribution_whose_sender_is_lost_while_it_comes_in_is_dropped() -> None:
    a = Worker("a")
    a.enters(1, "ABC", "abc")
    header = a.header(0, of=3, ranks=(1,))
    place = a.part.place("b", header)
    assert place is not None
    place[:] = encoded(FOUR_BITS, np.ones(N // 3, np.float32)).data

    with view_2_before(a, "_take_in", "AC", "ac"):
        arrive(a.part, "b", header, place)
    assert not a.part._slices._inputs


@pytest.mark.parametrize(
    ("machines", "own"), [("ABC", 0), ("ABC", 1), ("ABC", 2), ("ABCBA", 1), ("ABCBA", 2), ("ABCBA", 3)]
)
def test_a_mean_is_summed_in_the_order_of_the_hosts_whichever_of_them_takes_it(
    machines: str, own: int
) -> None:
    """Sums of floats depend on it: the same contributions give the same bits on any host."""
    of, names = len(machines), "abcde"[: len(machines)]
    values = [np.float32({"A": 1e8, "B": -1e8, "C": 1}[machine]) for machine in machines]
    worker = Worker(names[own], chain(TopK(1.0)))
    worker.enters(1, machines, names)
    worker.driver.contribution[:] = values[own]
    worker.part.tell(Ready(0, 1.0))
    for sender, ranks in worker.part.participant.hosts.inputs(own, own):
        if sender != own:
            coded = machines[sender] != machines[own]
            header = worker.header(own, of=of, ranks=ranks, coded=coded)
            worker.gets(names[sender], header, np.full(N // of, values[sender]))
    a, b = own * N // of, (own + 1) * N // of
    expected = np.empty(N // of, np.float32)
    first_ranks, weights = [machines.index(host) for host in "ABC"], [machines.count(host) for host in "ABC"]
    mean(expected, [np.full(N // of, values[rank]) for rank in first_ranks], weights)
    np.testing.assert_array_equal(worker.driver.combined[a:b], expected)
