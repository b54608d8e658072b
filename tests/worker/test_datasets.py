import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from manyhands.errors import DataError
from manyhands.worker.datasets import Source, source_for

ROWS = np.array([3, 0, 4])


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_an_array_gives_its_rows():
    data = np.arange(10.0).reshape(5, 2)
    source = source_for(data)
    assert source.length == 5
    assert np.array_equal(source.batch(ROWS), data[ROWS])
    assert source.describe() == "1 array (ndarray (5, 2))"


def test_a_tuple_or_dict_of_arrays_gives_batches_of_the_same_structure():
    x, y = np.arange(5) * 10, np.arange(5)
    first, second = source_for((x, y)).batch(ROWS)
    assert first.tolist() == [30, 0, 40]
    assert second.tolist() == [3, 0, 4]
    named = source_for({"x": x, "y": y}).batch(ROWS)
    assert {name: rows.tolist() for name, rows in named.items()} == {"x": [30, 0, 40], "y": [3, 0, 4]}
    Pair = namedtuple("Pair", "x y")
    assert source_for(Pair(x, y)).batch(ROWS).y.tolist() == [3, 0, 4]


def test_a_memory_mapped_array_is_read_row_by_row(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(10).reshape(5, 2))
    assert source_for(np.load(tmp_path / "x.npy", mmap_mode="r")).batch(ROWS).tolist() == [
        [6, 7],
        [0, 1],
        [8, 9],
    ]


def test_a_table_goes_by_row_not_by_label():
    class Located:
        def __getitem__(self, rows):
            return f"rows {rows.tolist()}"

    class Table:
        shape = (5, 2)
        iloc = Located()

        def __getitem__(self, column):
            raise KeyError(column)

    assert source_for(Table()).batch(ROWS) == "rows [3, 0, 4]"


def test_a_sequence_gives_the_list_of_its_items():
    assert source_for(["a", "b", "c", "d", "e"]).batch(ROWS) == ["d", "a", "e"]
    assert source_for(range(0, 50, 10)).batch(ROWS) == [30, 0, 40]
    images = [np.zeros(2) + number for number in range(5)]
    assert [image[0] for image in source_for(images).batch(ROWS)] == [3, 0, 4]


def test_a_sequence_that_can_is_asked_for_a_whole_batch():
    class Together:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            raise AssertionError("asked one by one")

        def __getitems__(self, wanted):
            assert all(type(index) is int for index in wanted)
            return [index * 10 for index in wanted]

    assert source_for(Together()).batch(ROWS) == [30, 0, 40]


def test_files_come_as_paths_that_the_user_opens(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(str(number))
    source = source_for(sorted(tmp_path.glob("*.txt")))
    assert [path.read_text() for path in source.batch(ROWS)] == ["3", "0", "4"]
    assert source.describe() == "a list of files of length 5"


def test_collate_makes_the_batch_from_the_samples():
    assert source_for([1, 2, 3, 4, 5], sum).batch(ROWS) == 4 + 1 + 5
    x, y = np.arange(5) * 10, np.arange(5)
    assert source_for((x, y), list).batch(ROWS) == [(30, 3), (0, 0), (40, 4)]
    assert source_for({"x": x}, list).batch(ROWS) == [{"x": 30}, {"x": 0}, {"x": 40}]


def test_a_source_of_the_users_own_is_taken_as_it_is():
    class Squares:
        length = 5

        def batch(self, indices):
            return indices**2

        def describe(self):
            return "squares"

    squares = Squares()
    assert isinstance(squares, Source)
    assert source_for(squares) is squares


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ((np.zeros(3), np.zeros(4)), r"differ in length \(0: 3, 1: 4\); give arrays with the same number"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, r"differ in length \('x': 3, 'y': 4\)"),
        ([], "list of length 0: partition needs at least one sample"),
        (np.zeros((0, 3)), "1 array .*: partition needs at least one sample"),
        ((), "tuple of length 0"),
        ({}, "a dict of nothing; give arrays"),
        (np.float32(1), "array without dimensions; give one with a row for each sample"),
        (([1, 2], [3, 4]), "a tuple of list; give arrays of equal length in it, or a list of samples"),
        ((np.zeros(2), [1, 2]), "a tuple of list, ndarray"),
        ({"train": [1, 2]}, "a dict of list"),
        ((number for number in range(3)), "a generator: it has no __len__.*give a list"),
        ({1, 2}, "a set: it has no __getitem__.*sorted"),
        ("corpus.txt", "one path or text, 'corpus.txt'; give a list of files"),
        (Path("corpus.txt"), "one path or text, 'corpus.txt'"),
        (7, "cannot read a int"),
        (None, "cannot read a NoneType"),
    ],
)
def test_what_cannot_be_partitioned_is_named_with_the_remedy(dataset, sentence):
    with pytest.raises(DataError, match=sentence):
        source_for(dataset)


def test_torch_is_not_imported_for_data_of_other_kinds():
    script = """
import sys
import numpy as np
from manyhands.core.messages import Dataset, Span
from manyhands.worker.batches import Batches, Ended
from manyhands.worker.datasets import source_for

class Once:
    size = 1
    spans = [(Span(0, 0, 0, 4),)]
    def take(self, dataset, samples):
        return self.spans.pop() if self.spans else Ended()
    def peek(self, dataset, samples):
        return ()
    def put_down(self, dataset, *, unloaded=()):
        pass
    def committed(self, dataset):
        return 0

for data in (np.arange(4), list(range(4))):
    for workers in (0, 2):
        leases = Once()
        leases.spans = list(Once.spans)
        batches = Batches(source_for(data), Dataset(0, 4, 4, 1, "dynamic", 0), leases, workers=workers)
        assert [sorted(batch) for batch in batches] == [[0, 1, 2, 3]]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_tensor_data_set_gives_what_a_data_loader_gives(torch):
    tensors = torch.utils.data.TensorDataset(torch.arange(10.0).reshape(5, 2), torch.arange(5))
    loader = torch.utils.data.DataLoader(tensors, batch_sampler=[ROWS.tolist()])
    (expected,) = list(loader)
    batch = source_for(tensors).batch(ROWS)
    assert type(batch) is type(expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(batch, expected, strict=True))


def test_a_map_style_data_set_gives_what_a_data_loader_gives(torch):

    class Squares(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return {"x": index**2, "name": f"square {index}"}

    (expected,) = list(torch.utils.data.DataLoader(Squares(), batch_sampler=[ROWS.tolist()]))
    for dataset in (Squares(), torch.utils.data.Subset(Squares(), range(5))):
        batch = source_for(dataset).batch(ROWS)
        assert batch["name"] == expected["name"]
        assert torch.equal(batch["x"], expected["x"])
    assert source_for(Squares(), len).batch(ROWS) == 3
    assert source_for(Squares()).describe() == "a Squares of length 5"


def test_tensors_are_picked_like_arrays(torch):
    x, y = source_for((torch.arange(5) * 10, np.arange(5))).batch(ROWS)
    assert torch.equal(x, torch.tensor([30, 0, 40]))
    assert y.tolist() == [3, 0, 4]


def test_an_iterable_data_set_is_refused_with_the_remedy(torch):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(3))

        def __len__(self):
            return 3

    with pytest.raises(
        DataError, match=r"Stream: an IterableDataset has no samples by index.*list of its files"
    ):
        source_for(Stream())


def test_a_data_set_without_length_is_refused_with_the_remedy(torch):
    class Endless(torch.utils.data.Dataset):
        def __getitem__(self, index):
            return index

    with pytest.raises(DataError, match="Endless: it has no __len__"):
        source_for(Endless())


def test_of_a_torch_data_loader_its_data_set_is_asked_for(torch):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4)), batch_size=2)
    with pytest.raises(
        DataError, match=r"partition got a DataLoader.*; give the data set in it, loader.dataset"
    ):
        source_for(loader)
