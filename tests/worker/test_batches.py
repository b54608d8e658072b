import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.core.messages import Span
from manyhands.core.shuffle import Shuffle
from manyhands.errors import DataError, ProtocolError
from manyhands.worker.batches import Batches, Ended, Idle, cut, declare
from manyhands.worker.datasets import source_for


class Pool:
    """A ledger in memory: leases blocks of one epoch, and commits a batch when its reader takes the next."""

    def __init__(self, dataset, members=1, lease=1000):
        self.dataset, self.committed = dataset, 0
        self.free = deque(
            Span(dataset.index, epoch, start, min(start + lease, dataset.length))
            for epoch in range(dataset.epochs)
            for start in range(0, dataset.length, lease)
        )
        self.members = [Member(self) for _ in range(members)]

    def lease(self):
        if self.free and self.free[0].epoch == self.committed // self.dataset.length:
            return (self.free.popleft(),)
        return ()


class Member:
    def __init__(self, pool):
        self.pool, self.leased, self.reading = pool, (), 0

    @property
    def size(self):
        return len(self.pool.members)

    def committed(self, dataset):
        assert dataset == self.pool.dataset.index
        return self.pool.committed

    def take(self, dataset, samples):
        self.pool.committed += self.reading
        self.reading = 0
        self.leased = self.leased or self.pool.lease()
        if not self.leased:
            total = self.pool.dataset.length * self.pool.dataset.epochs
            return Ended() if self.committed(dataset) == total else Idle()
        batch, self.leased = cut(self.leased, samples)
        self.reading = sum(map(len, batch))
        return batch

    def peek(self, dataset, samples):  # noqa: ARG002
        return self.leased

    def put_down(self, dataset, *, unloaded=()):
        pass


def pool_for(data, members=1, lease=1000, **arguments):
    """A pool, and what each member iterates over."""
    loading = {name: arguments.pop(name) for name in ("workers", "ahead", "pin") if name in arguments}
    source = source_for(data, arguments.pop("collate", None))
    pool = Pool(declare(3, source.length, **arguments), members, lease)
    return pool, [Batches(source, pool.dataset, member, **loading) for member in pool.members]


def alone(data, lease=1000, **arguments):
    _, (batches,) = pool_for(data, 1, lease, **arguments)
    return batches


def leftovers():
    loading = [thread.name for thread in threading.enumerate() if thread.name.startswith("manyhands-load")]
    return loading + psutil.Process().children()


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert not leftovers()


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(params=["in this thread", "threads", "processes"])
def loading(request):
    """Makes a list of numbers a data set that is loaded in each of the ways there are."""
    if request.param == "in this thread":
        return lambda numbers: numbers, {}
    if request.param == "threads":
        return lambda numbers: numbers, {"workers": 2}
    torch = pytest.importorskip("torch")
    return lambda numbers: Numbers.of(torch, numbers), {"workers": 2, "collate": list}


class Numbers:
    @staticmethod
    def of(torch, numbers):
        class NumbersDataset(torch.utils.data.Dataset):
            def __len__(self):
                return len(numbers)

            def __getitem__(self, index):
                return numbers[index]

        return NumbersDataset()


# --- what comes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "batch_size", "lease"), [(100, 8, 30), (7, 8, 30), (64, 8, 8), (9, 1, 2)])
def test_alone_every_sample_comes_exactly_once_in_every_epoch(loading, length, batch_size, lease):
    of, how = loading
    batches = alone(of(list(range(length))), lease, batch_size=batch_size, epochs=3, **how)
    seen = {0: [], 1: [], 2: []}
    for batch in batches:
        assert 0 < len(batch) <= batch_size
        assert batches.weight == len(batch)
        seen[batches.epoch] += batch
    assert all(sorted(samples) == list(range(length)) for samples in seen.values())


def test_every_epoch_has_its_own_seeded_order(loading):
    of, how = loading
    batches = alone(of(list(range(50))), batch_size=10, epochs=2, seed=4, **how)
    order = [number for batch in batches for number in batch]
    assert order == [number for epoch in (0, 1) for number in Shuffle(50, 4, epoch).indices(0, 50)]
    assert order[:50] != order[50:]


def test_without_shuffling_samples_keep_their_order():
    assert [batch.tolist() for batch in alone(np.arange(5), batch_size=2, shuffle=False)] == [
        [0, 1],
        [2, 3],
        [4],
    ]


def test_the_order_goes_on_through_large_sets():
    batches = alone(np.arange(10_000), 5000, batch_size=3000, seed=1)
    assert np.concatenate(list(batches)).tolist() == Shuffle(10_000, 1, 0).indices(0, 10_000).tolist()


def test_torch_batches_are_those_of_a_data_loader(torch):
    x, y = torch.arange(20.0).reshape(10, 2), torch.arange(10)
    tensors = torch.utils.data.TensorDataset(x, y)
    ours = list(alone(tensors, batch_size=4, shuffle=False))
    theirs = list(torch.utils.data.DataLoader(tensors, batch_size=4))
    for (x, y), (u, v) in zip(ours, theirs, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_files_come_as_lists_of_paths(tmp_path):
    files = [tmp_path / f"{number}.txt" for number in range(5)]
    assert list(alone(files, batch_size=2, shuffle=False)) == [files[:2], files[2:4], files[4:]]


def test_members_get_disjoint_samples_and_the_fast_one_more():
    _, (fast, slow) = pool_for(list(range(100)), 2, lease=10, batch_size=5)
    seen = {fast: [], slow: []}
    slow_loop = iter(slow)
    for number, batch in enumerate(fast):
        seen[fast] += batch if fast.weight else []
        if number % 3 == 0:
            batch = next(slow_loop, [])
            seen[slow] += batch if slow.weight else []
    slow_loop.close()
    assert sorted(seen[fast] + seen[slow]) == list(range(100))
    assert len(seen[fast]) > 2 * len(seen[slow]) > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_member_with_nothing_left_repeats_its_last_batch_with_weight_zero(workers):
    _, (first, second) = pool_for(list(range(30)), 2, lease=20, batch_size=10, workers=workers)
    one, two = iter(first), iter(second)
    next(one), next(two), next(one)
    last = None
    for _ in range(3):  # the other one has not committed its batch yet
        repeated = next(two)
        assert second.weight == 0
        assert sorted(repeated) == sorted(Shuffle(30, 0, 0).indices(20, 30))
        assert repeated is not last
        repeated.clear()  # as a script may do with its batch: a repeat is loaded afresh
        last = repeated
    assert list(one) == []  # its own batches and those of the other have committed
    assert next(two, None) is None
    two.close()


def test_a_member_that_never_had_a_batch_takes_part_with_the_first_one():
    pool, (first, second) = pool_for(list(range(10)), 2, lease=10, batch_size=4, seed=9)
    one, two = iter(first), iter(second)
    next(one)
    assert next(two) == Shuffle(10, 9, 0).indices(0, 4).tolist()
    assert second.weight == 0
    assert len(list(one)) == 2
    assert pool.committed == 10
    assert list(two) == []


# --- what it tells ----------------------------------------------------------------------------------


def test_length_is_the_fair_share_of_all_epochs():
    assert len(alone(range(100), batch_size=8, epochs=3)) == 3 * 13
    assert len(list(alone(range(100), batch_size=8, epochs=3))) == 3 * 13
    _, (batches, _, _, _) = pool_for(range(100), 4, batch_size=8, epochs=3)
    assert len(batches) == 3 * 4


def test_progress_counts_what_the_whole_pool_has_committed():
    pool, (first, second) = pool_for(list(range(40)), 2, lease=10, batch_size=10, epochs=2)
    assert first.progress == second.progress == 0
    one, two = iter(first), iter(second)
    next(one), next(two), next(two)
    assert first.progress == second.progress == 10 / 80
    pool.committed = 80
    assert first.progress == 1
    one.close(), two.close()


def test_before_the_first_batch_weight_and_epoch_are_zero():
    batches = alone(range(10))
    assert (batches.weight, batches.epoch) == (0, 0)


# --- leaving and coming back ------------------------------------------------------------------------


def test_a_second_loop_goes_on_where_the_first_was_left(loading):
    of, how = loading
    batches = alone(of(list(range(100))), 40, batch_size=10, **how)
    seen = []
    for batch in batches:
        seen += batch
        if len(seen) >= 30:
            break
    assert not leftovers()
    for batch in batches:
        seen += batch
    assert sorted(seen) == list(range(100))
    assert list(batches) == []


def test_an_error_in_the_loop_leaves_nothing_running(loading):
    of, how = loading
    batches = alone(of(list(range(100))), batch_size=10, **how)

    def train():
        for _ in batches:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert not leftovers()


def test_a_batch_that_could_not_be_loaded_comes_first_in_the_next_loop(loading, tmp_path):
    class Flaky(list):
        def __getitem__(self, index):
            if not (tmp_path / "mounted").exists():
                raise OSError(f"cannot read sample {index}")
            return super().__getitem__(index)

    of, how = loading
    batches = alone(of(Flaky(range(30))), batch_size=10, **how)
    with pytest.raises(OSError, match="cannot read sample"):
        next(iter(batches))
    assert not leftovers()
    (tmp_path / "mounted").touch()
    assert sorted(number for batch in batches for number in batch) == list(range(30))


def test_an_error_of_the_pool_reaches_the_loop_and_leaves_nothing_running(loading):
    of, how = loading
    pool, (batches,) = pool_for(of(list(range(100))), batch_size=10, **how)
    loop = iter(batches)
    next(loop)

    def take(*_):
        raise RuntimeError("evicted")

    pool.members[0].take = take
    with pytest.raises(RuntimeError, match="evicted"):
        next(loop)
    assert not leftovers()


# --- reading ahead ----------------------------------------------------------------------------------


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 seconds"
        time.sleep(0.005)


@pytest.mark.parametrize("way", ["threads", "processes"])
def test_the_next_batches_are_read_while_the_user_computes(way, tmp_path):
    class Recorded(list):
        def __getitem__(self, index):
            (tmp_path / str(index)).touch()
            return super().__getitem__(index)

    numbers = Recorded(range(100))
    data = numbers if way == "threads" else Numbers.of(pytest.importorskip("torch"), numbers)
    pool, (batches,) = pool_for(data, batch_size=5, shuffle=False, workers=2, ahead=2)
    loop = iter(batches)
    next(loop)
    until(lambda: len(list(tmp_path.iterdir())) == 25)  # the one given, and two for each of two workers
    assert pool.members[0].reading == 5
    assert batches.weight == 5
    loop.close()
    assert not (tmp_path / "25").exists()


def test_a_batch_read_ahead_that_went_to_another_worker_is_never_shown(loading):
    of, how = loading
    pool, (batches,) = pool_for(of(list(range(100))), batch_size=10, shuffle=False, **how)
    member, loop = pool.members[0], iter(batches)
    assert next(loop) == list(range(10))
    member.leased = (Span(3, 0, 25, 35), Span(3, 0, 60, 80))
    assert next(loop) == list(range(25, 35))
    member.leased = (Span(3, 0, 73, 77), *member.leased)
    assert next(loop) == [73, 74, 75, 76, 60, 61, 62, 63, 64, 65]
    member.leased = (Span(3, 0, 66, 70),)
    assert next(loop) == [66, 67, 68, 69]
    loop.close()


def test_a_batch_that_comes_later_than_it_was_read_is_not_read_twice(tmp_path):
    class Counted(list):
        def __getitem__(self, index):
            with (tmp_path / str(index)).open("a") as reads:
                reads.write("r")
            return super().__getitem__(index)

    for data in (Counted(range(60)), Numbers.of(pytest.importorskip("torch"), Counted(range(60)))):
        pool, (batches,) = pool_for(data, batch_size=10, shuffle=False, workers=2, collate=list)
        loop = iter(batches)
        next(loop)
        kept = pool.members[0].leased
        pool.members[0].leased = (Span(3, 0, 50, 60), Span(3, 0, 10, 50))
        assert [next(loop) for _ in range(5)] == [list(range(at, at + 10)) for at in (50, 10, 20, 30, 40)]
        assert kept == (Span(3, 0, 10, 60),)
        loop.close()
        assert all((tmp_path / str(index)).read_text() == "r" for index in range(60))
        for record in tmp_path.iterdir():
            record.unlink()


def test_reading_ahead_never_waits_for_leases_that_do_not_come(loading):
    of, how = loading
    batches = alone(of(list(range(40))), 4, batch_size=4, epochs=3, **how)  # nothing to peek at, ever
    assert sorted(number for batch in batches for number in batch) == sorted([*range(40)] * 3)


def test_loading_processes_read_torch_data_and_are_reused_between_batches(torch):
    class Where(torch.utils.data.Dataset):
        def __len__(self):
            return 60

        def __getitem__(self, index):
            return os.getpid(), torch.utils.data.get_worker_info().num_workers, index

    batches = alone(Where(), 20, batch_size=5, epochs=2, workers=2)
    pids = set()
    for pid, processes, _ in batches:
        assert processes.tolist() == [2] * len(processes)
        pids |= set(pid.tolist())
        assert {child.pid for child in psutil.Process().children()} >= pids
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_loading_processes_start_with_the_first_batch_only(torch):
    batches = alone(torch.arange(10), batch_size=5, workers=2)
    loop = iter(batches)
    assert not leftovers()
    next(loop)
    assert len(leftovers()) == 2
    loop.close()


KILLED = """
import os, signal
import psutil, torch
from manyhands.core.messages import Dataset, Span
from manyhands.worker.batches import Batches
from manyhands.worker.datasets import source_for

class Leases:
    size = 1
    def take(self, dataset, samples):
        return (Span(0, 0, 0, samples),)
    def peek(self, dataset, samples):
        return (Span(0, 0, 5, 15),)
    def committed(self, dataset):
        return 0

class Stuck(torch.utils.data.Dataset):
    def __len__(self):
        return 15
    def __getitem__(self, index):
        while index >= 5:
            signal.pause()
        return index

batches = Batches(source_for(Stuck()), Dataset(0, 15, 5, 1, "dynamic", None), Leases(), workers=2)
next(loop := iter(batches))
print(*(child.pid for child in psutil.Process().children()), flush=True)
signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_loading_processes_end_with_a_killed_worker_whatever_they_are_doing(torch):  # noqa: ARG001
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as worker:
        loading = [psutil.Process(int(pid)) for pid in worker.stdout.readline().split()]
        worker.send_signal(signal.SIGKILL)
    try:
        assert len(loading) == 2
        until(lambda: not any(map(alive, loading)))
    finally:
        for process in filter(alive, loading):
            process.kill()


def alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize("workers", [0, 2])
def test_pinning_gives_the_same_batches(torch, workers):
    batches = list(alone(torch.arange(20), batch_size=8, shuffle=False, workers=workers, pin=True))
    assert [batch.tolist() for batch in batches] == [list(range(8)), list(range(8, 16)), list(range(16, 20))]
    assert all(batch.is_pinned() == torch.cuda.is_available() for batch in batches)


# --- what cannot be ---------------------------------------------------------------------------------


def test_pinning_of_other_data_is_refused_with_the_remedy():
    with pytest.raises(DataError, match="pin=True needs torch data, and the data set is 1 array"):
        next(iter(alone(np.arange(10), pin=True)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "batch_size=0; give a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5; give a whole number"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": "3"}, "epochs='3'"),
        ({"order": "random"}, "order='random'; it is one of 'dynamic', 'static'"),
        ({"seed": None}, "seed=None; give a whole number"),
        ({"shuffle": 7}, "shuffle=7; give True or False"),
        ({"workers": -1}, "workers=-1; give a whole number of at least 0"),
        ({"ahead": 0}, "ahead=0; give a whole number of at least 1"),
    ],
)
def test_arguments_that_make_no_sense_are_named_with_the_remedy(arguments, sentence):
    with pytest.raises(DataError, match=sentence):
        alone(range(10), **arguments)


@pytest.mark.parametrize(
    "taken", [(), (Span(3, 0, 0, 2), Span(3, 1, 0, 2)), (Span(3, 0, 8, 12),), (Span(3, 0, 5, 5),)]
)
def test_spans_that_cannot_be_a_batch_are_a_fault_of_ours(taken):
    pool, (batches,) = pool_for(range(10), epochs=2)
    pool.members[0].take = lambda *_: taken
    with pytest.raises(ProtocolError, match="10 samples, of one epoch"):
        next(iter(batches))


spans = st.builds(
    lambda epoch, start, length: Span(0, epoch, start, start + length),
    st.integers(0, 2),
    st.integers(0, 100),
    st.integers(1, 50),
)


@settings(deadline=None)
@given(st.lists(spans, min_size=1, max_size=6).map(tuple), st.integers(1, 80))
def test_a_cut_is_full_or_ends_an_epoch_and_loses_nothing(leased, samples):
    def positions(some):
        return [(span.epoch, at) for span in some for at in range(span.start, span.stop)]

    batch, rest = cut(leased, samples)
    assert positions(batch) + positions(rest) == positions(leased)
    assert len({span.epoch for span in batch}) == 1
    assert len(positions(batch)) == samples or not rest or rest[0].epoch != batch[0].epoch
    assert 0 < len(positions(batch)) <= samples
