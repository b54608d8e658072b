"""What `Pool.partition` takes: arrays, sequences, files and torch data sets, all read by index."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from manyhands.core.shuffle import LONGEST
from manyhands.errors import DataError

Collate = Callable[[list[Any]], Any]
Indices = NDArray[np.int64]


@runtime_checkable
class Source(Protocol):
    """A data set of known length that gives any of its samples by index.

    `batch` takes indices of shape (samples,) in 0 … length-1, each at most once, in any order, and may
    be called from a loading thread or process. `describe` completes the sentence "the data set is …".
    """

    @property
    def length(self) -> int: ...

    def batch(self, indices: Indices) -> Any: ...

    def describe(self) -> str: ...


def source_for(dataset: Any, collate: Collate | None = None) -> Source:
    """Read any supported data set by index.

    - an array, or a tuple or dict of arrays of equal length (numpy, torch tensors, pandas, anything
      with `shape` and fancy indexing): a batch has the same structure, with the rows picked;
    - a torch Dataset: a batch is what torch's DataLoader would give;
    - any other object with `__len__` and `__getitem__` (a list of file paths, say): a batch is the
      list of its items. A list of arrays is such a sequence: each array is one sample.

    `collate` makes the batch from the list of samples instead.
    Raises DataError for anything else, an empty data set, or columns of different lengths.
    """
    if isinstance(dataset, Source):
        source = dataset
    elif _is_of_torch_data(dataset, "Dataset"):
        source = importlib.import_module("manyhands.frameworks.torch_data").dataset(dataset, collate)
    elif columns := _columns_of(dataset):
        source = Columns(dataset, columns, collate)
        if any(_is_tensor(column) for column in columns.values()):
            source = importlib.import_module("manyhands.frameworks.torch_data").TorchSource(source)
    else:
        source = Items(dataset, length_of(dataset), collate)
    if not 0 < source.length <= LONGEST:
        raise DataError(f"the data set is {source.describe()}: partition needs at least one sample")
    return source


class Columns:
    """Arrays with one row for each sample, picked by fancy indexing."""

    def __init__(self, structure: Any, columns: dict[Any, Any], collate: Collate | None = None) -> None:
        """`structure` is the array, tuple or dict a batch looks like; `columns` are the arrays in it."""
        lengths = {name: int(column.shape[0]) for name, column in columns.items() if column.shape}
        if len(lengths) < len(columns):
            raise DataError("partition got an array without dimensions; give one with a row for each sample")
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name!r}: {length}" for name, length in lengths.items())
            raise DataError(
                f"the arrays to partition differ in length ({told}); give arrays with the same number of rows"
            )
        self._structure, self._columns, self._collate = structure, columns, collate
        self.length = next(iter(lengths.values()))

    def batch(self, indices: Indices) -> Any:
        rows = {name: _rows(column, indices) for name, column in self._columns.items()}
        if self._collate is None:
            return self._like(rows)
        samples = ({name: _rows(column, at) for name, column in rows.items()} for at in range(len(indices)))
        return self._collate([self._like(sample) for sample in samples])

    def describe(self) -> str:
        told = ", ".join(
            f"{type(column).__name__} {tuple(column.shape)}" for column in self._columns.values()
        )
        return f"{len(self._columns)} array{'s' * (len(self._columns) > 1)} ({told})"

    def _like(self, rows: dict[Any, Any]) -> Any:
        if isinstance(self._structure, Mapping):
            return rows
        if not isinstance(self._structure, tuple):
            return rows[0]
        kind = type(self._structure)
        return kind(*rows.values()) if hasattr(kind, "_fields") else tuple(rows.values())


@dataclass(frozen=True)
class Items:
    """A sequence: the list of the items at the indices, or what `collate` makes of it.

    `__getitems__(list of int) -> list`, where the sequence has it, is asked for the whole batch at once.
    """

    sequence: Any
    length: int
    collate: Collate | None = None

    def batch(self, indices: Indices) -> Any:
        wanted = indices.tolist()  # plain integers: many a __getitem__ does not know numpy's
        together = getattr(self.sequence, "__getitems__", None)
        items = together(wanted) if together else [self._item(index) for index in wanted]
        return items if self.collate is None else self.collate(items)

    def _item(self, index: int) -> Any:
        try:
            return self.sequence[index]
        except Exception as error:
            error.add_note(f"while sample {index} of the data set was read")
            raise

    def describe(self) -> str:
        kind = "a list of files" if self._holds_paths() else f"a {type(self.sequence).__name__}"
        return f"{kind} of length {self.length}"

    def _holds_paths(self) -> bool:
        return isinstance(self.sequence, list | tuple) and any(
            isinstance(x, PathLike) for x in self.sequence[:1]
        )


def _is_of_torch_data(dataset: Any, kind: str) -> bool:
    data = sys.modules.get("torch.utils.data")
    return data is not None and isinstance(dataset, getattr(data, kind))


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and (hasattr(value, "dtype") or hasattr(value, "iloc"))


def _rows(column: Any, rows: Indices | int) -> Any:
    # Plain indexing of a pandas object goes by label, and of a data frame by column.
    return column.iloc[rows] if hasattr(column, "iloc") else column[rows]


def _columns_of(dataset: Any) -> dict[Any, Any] | None:
    """The arrays of an array, a tuple or a dict of arrays, by place or key; None for a sequence."""
    if _is_array(dataset):
        return {0: dataset}
    if isinstance(dataset, Mapping):
        columns = dict(dataset)
    elif isinstance(dataset, tuple):
        columns = dict(enumerate(dataset))
    else:
        return None
    arrays = [_is_array(column) for column in columns.values()]
    if columns and all(arrays):
        return columns
    if isinstance(dataset, tuple) and not any(arrays) and not any(isinstance(x, list) for x in dataset):
        return None
    kinds = ", ".join(sorted({type(column).__name__ for column in columns.values()}))
    raise DataError(
        f"partition cannot tell the samples of a {type(dataset).__name__} of {kinds or 'nothing'}; "
        "give arrays of equal length in it, or a list of samples: list(zip(first, second))"
    )


def length_of(dataset: Any) -> int:
    """The number of samples; DataError, with the remedy, for what cannot be read by index."""
    kind = type(dataset).__name__
    if isinstance(dataset, str | bytes | PathLike):
        raise DataError(
            f"partition got one path or text, {str(dataset)!r}; give a list of files: "
            "sorted(Path(folder).glob('*.txt'))"
        )
    if _is_of_torch_data(dataset, "DataLoader"):
        raise DataError(
            f"partition got a {kind}, which makes batches itself; give the data set in it, loader.dataset, "
            "with the loader's batch_size, and its collate_fn as collate= where it has one of its own"
        )
    if not hasattr(dataset, "__len__"):
        raise DataError(
            f"partition cannot read a {kind}: it has no __len__, so its samples cannot be divided and "
            "counted; give a list, arrays or a map-style data set, or partition its list of files"
        )
    if not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"partition cannot read a {kind}: it has no __getitem__(index); give a list: sorted(dataset)"
        )
    return len(dataset)
