"""Checkpoints in a store: whole or none."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manyhands.checkpoints.files import put_together, take_apart
from manyhands.checkpoints.manifest import FORMAT, File, Manifest
from manyhands.checkpoints.store import MANIFEST, PLAIN, TENSORS, Store, name_of
from manyhands.core.messages import Dataset, SavedHolding, Tensor, Version
from manyhands.errors import CheckpointError, ConfigurationError, ModelError
from manyhands.sharing import tree
from manyhands.sharing.tree import Foreign

LINE = "0123abcd"
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
) | hnp.arrays(
    st.sampled_from(["f4", "f8", "i8", "u2", "?", "c8", "c16"]), hnp.array_shapes(min_dims=0, min_side=0)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def manifest(files: dict[str, File], number: int = 7, created: float = 1.0) -> Manifest:
    return Manifest(
        format=FORMAT,
        software="0",
        run="run",
        version=Version(number, 1),
        created=created,
        strategy="LocalSGD(every=2)",
        tensors=(Tensor("w", (2,), "float32"),),
        datasets=(Dataset(0, 100, 10, 3, "dynamic", 0),),
        holdings=(SavedHolding(0, 1, ((0, 20), (50, 60))),),
        files=files,
    )


def kept(store: Store, number: int, state: Any = None) -> str:
    tensors, plain = take_apart({"w": np.arange(3.0)} if state is None else state)
    name = name_of(number, LINE, number)
    store.write(name, {TENSORS: tensors, PLAIN: plain}, lambda files: manifest(files, number))
    return name


@given(TREES)
def test_a_state_is_read_as_it_was_kept(state: Any) -> None:
    assert bytes(tree.pack(put_together(*take_apart(state)))) == bytes(tree.pack(state))


def test_what_no_file_format_has_a_name_for_is_kept_all_the_same() -> None:
    state = {
        "b": Foreign(np.array([1, 2], np.uint16), "bfloat16"),
        "odd": Foreign(np.array([7], np.uint8), "int4"),
        ("a", 1): Counter(x=2),
        "inf": [math.inf, math.nan, b"\x00\xff"],
        "w": {1: np.ones(2), "1": np.zeros(2)},
    }
    read = put_together(*take_apart(state))
    assert bytes(tree.pack(read)) == bytes(tree.pack(state))
    assert read["b"].dtype == "bfloat16"


def test_what_cannot_be_kept_is_named() -> None:
    with pytest.raises(ModelError, match=r"state\['x'\]\[0\] is a builtins.object"):
        take_apart({"x": [object()]})


def test_arrays_lie_in_safetensors_under_names_that_say_what_they_are() -> None:
    import safetensors

    tensors, _ = take_apart({"driver": {"parameters": {"layer.weight": np.ones((2, 3), np.float32)}}})
    ((name, tensor),) = safetensors.deserialize(tensors)
    assert (name, tensor["dtype"], tensor["shape"]) == ("driver.parameters.layer.weight", "F32", [2, 3])


@pytest.mark.parametrize("protocol", ["", "memory://"])
def test_the_newest_whole_checkpoint_is_found_in_any_store(tmp_path: Path, protocol: str) -> None:
    store = Store(f"{protocol}{tmp_path}/kept")
    assert store.newest() is None
    for number in (9, 11, 100_000_000):
        kept(store, number, {"number": number})
    newest = store.newest()
    assert newest is not None
    assert store.state(newest) == {"number": 100_000_000}
    assert store.manifest(newest).version == Version(100_000_000, 1)
    assert store.manifest(newest).samples == 130


class WithoutOptions(MemoryFileSystem):
    """A store that lists in the least way that there is, as that for sftp does."""

    protocol = "bare"

    def ls(self, path: str, detail: bool = False) -> list[Any]:
        found: list[Any] = super().ls(path, detail)
        return found


def test_a_store_that_lists_without_further_options_is_listed_as_it_is_now(tmp_path: Path) -> None:
    fsspec.register_implementation("bare", WithoutOptions, clobber=True)
    store, other = (Store(f"bare://{tmp_path}/kept") for _ in range(2))
    names = [kept(store, 1)]
    assert other.names() == names
    names.insert(0, kept(store, 2))
    assert other.names() == names
    assert store.keep(1, LINE) == names[1:]


@pytest.mark.parametrize("lost", [MANIFEST, TENSORS, PLAIN])
def test_a_torn_checkpoint_is_never_taken_for_a_whole_one(tmp_path: Path, lost: str) -> None:
    store = Store(str(tmp_path))
    older, newer = kept(store, 1), kept(store, 2)
    (tmp_path / newer / lost).unlink()
    said: list[str] = []
    assert store.newest(said.append) == older
    assert newer in said[0]


@pytest.mark.parametrize("damaged", [MANIFEST, TENSORS, PLAIN])
def test_a_flipped_bit_is_found_and_its_file_named(tmp_path: Path, damaged: str) -> None:
    store = Store(str(tmp_path))
    older, newer = kept(store, 1), kept(store, 2)
    path = tmp_path / newer / damaged
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=damaged):
        store.verified(newer)
    assert store.newest() == older


def test_the_last_ones_are_kept_and_torn_ones_do_not_count(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    names = [kept(store, number) for number in range(1, 6)]
    (tmp_path / names[3] / MANIFEST).unlink()
    (tmp_path / "notes").mkdir()
    assert store.keep(2, LINE) == [names[1], names[0]]
    assert store.names() == [names[4], names[3], names[2]]
    assert (tmp_path / "notes").exists()


def test_another_run_under_the_same_url_keeps_its_own_and_leaves_those_of_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    old = [kept(store, number) for number in (100, 200, 300)]
    tensors, plain = take_apart({"number": 10})
    mine = []
    for serial in (1, 2, 3):
        name = name_of(10 * serial, "ffffffff", serial)
        store.write(name, {TENSORS: tensors, PLAIN: plain}, lambda files: manifest(files, 10, created=9.0))
        store.keep(2, "ffffffff")
        mine.append(name)
    assert set(store.names()) == {*old, *mine[1:]}
    assert store.newest() == mine[2], "the one written last, whatever its version is"
    store.remove("ffffffff", [3])
    assert store.newest() == mine[1]


def test_a_checkpoint_of_another_format_is_refused_with_the_software_that_wrote_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    name = kept(store, 1)
    path = tmp_path / name / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"format":2,"software":"0"', b'"format":9,"software":"5.0"'))
    with pytest.raises(CheckpointError, match=r"manyhands 5.0 in format 9, this one reads 2"):
        store.manifest(name)


def test_a_store_that_cannot_be_opened_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere://x"):
        Store("nowhere://x")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=rf"cannot be written to {tmp_path}/file/v00000001-0123abcd-1"):
        kept(Store(f"{tmp_path}/file"), 1)


def test_nothing_is_left_in_memory_by_these_tests() -> None:
    fsspec.filesystem("memory").store.clear()
