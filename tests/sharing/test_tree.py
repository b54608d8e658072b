import collections
import contextlib
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from manyhands.errors import ModelError, WireError
from manyhands.sharing import tree as trees
from manyhands.sharing.tree import Foreign, check, pack, unpack

DTYPES = some.sampled_from(
    ["bool", "int8", "int64", "uint16", "uint64", "float16", "float32", "float64", "complex64"]
)
SCALARS = (
    some.none()
    | some.booleans()
    | some.integers(-(2**200), 2**200)
    | some.floats()
    | some.text(max_size=8)
    | some.binary(max_size=8)
)


@some.composite
def arrays(draw: some.DrawFn) -> np.ndarray:
    shape = tuple(draw(some.lists(some.integers(0, 4), max_size=3)))
    raw = draw(some.binary(min_size=8 * math.prod(shape), max_size=8 * math.prod(shape)))
    return np.frombuffer(raw, "uint64").reshape(shape).astype("uint8").astype(draw(DTYPES))


KEYS = (
    some.text(max_size=4)
    | some.integers(-5, 2**70)
    | some.booleans()
    | some.tuples(some.integers(), some.text())
)
LEAVES = (
    SCALARS
    | arrays()
    | some.builds(Foreign, arrays(), some.just("bfloat16"))
    | some.floats(width=32).map(np.float32)
    | some.integers(0, 255).map(np.uint8)
)
TREES = some.recursive(
    LEAVES,
    lambda inner: (
        some.lists(inner, max_size=4)
        | some.lists(inner, max_size=4).map(tuple)
        | some.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
    if isinstance(a, np.generic):
        return (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
    if isinstance(a, Foreign):
        return a.dtype == b.dtype and same(a.array, b.array)
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(k, m) and same(v, w) for (k, v), (m, w) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@given(TREES)
def test_what_is_packed_comes_out_the_same(tree: object) -> None:
    packed = pack(tree)
    assert same(unpack(packed), tree)
    assert same(unpack(bytes(packed)), tree)


@given(TREES, some.data())
def test_bytes_changed_on_the_way_raise_a_wire_error_or_nothing(tree: object, data: some.DataObject) -> None:
    packed = pack(tree)
    for _ in range(data.draw(some.integers(1, 4))):
        packed[data.draw(some.integers(0, len(packed) - 1))] = data.draw(some.integers(0, 255))
    with contextlib.suppress(WireError):
        unpack(packed)


@given(TREES, some.data())
def test_a_buffer_cut_short_raises_a_wire_error(tree: object, data: some.DataObject) -> None:
    packed = pack(tree)
    with pytest.raises(WireError):
        unpack(packed[: data.draw(some.integers(0, len(packed) - 1))])


@given(some.binary(max_size=200))
def test_a_skeleton_of_any_bytes_raises_a_wire_error_or_nothing(skeleton: bytes) -> None:
    head = trees._HEAD.pack(trees._MAGIC, len(skeleton), trees._HEAD.size + len(skeleton))
    with contextlib.suppress(WireError):
        unpack(head + skeleton)


def test_arrays_lie_aligned_and_are_not_copied_out() -> None:
    packed = pack({"a": np.arange(3, dtype="float32"), "b": np.arange(5.0)})
    tree = unpack(packed)
    start = np.frombuffer(packed, "uint8").__array_interface__["data"][0]
    for array in tree.values():
        assert (array.__array_interface__["data"][0] - start) % 64 == 0
        assert np.shares_memory(array, np.frombuffer(packed, "uint8"))


def test_what_is_packed_is_a_copy_of_that_moment() -> None:
    state = np.arange(5.0)
    packed = pack([state])
    state[:] = 0
    np.testing.assert_array_equal(unpack(packed)[0], np.arange(5.0))


def test_arrays_of_any_order_in_memory_travel() -> None:
    array = np.arange(24, dtype=">i4").reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    np.testing.assert_array_equal(unpack(pack(array)), array)


def test_a_counter_stays_one_and_an_ordered_dict_becomes_a_dict() -> None:
    got = unpack(pack([collections.Counter(a=3, b=-1), collections.OrderedDict(z=1, a=2)]))
    assert type(got[0]) is collections.Counter
    assert got[0] == collections.Counter(a=3, b=-1)
    assert type(got[1]) is dict
    assert list(got[1]) == ["z", "a"]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            {"a": [1, lambda: 0]},
            r"state\['a'\]\[1\] is a builtins.function, which cannot travel.*leave this out",
        ),
        ({"s": {1, 2}}, r"state\['s'\] is a builtins.set"),
        ([np.array([None])], r"state\[0\] is an array of dtype object"),
        ([np.array(["x"])], r"state\[0\] is an array of dtype <U1"),
        ([np.datetime64("2020-01-01")], r"state\[0\] is an array of dtype datetime64"),
    ],
)
def test_what_cannot_travel_is_named_with_its_place(tree: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        pack(tree)
    with pytest.raises(ModelError, match=re.escape("also[0]") + "|" + "optimizer"):
        check(tree, "optimizer")


def test_a_tree_too_deep_is_refused_on_both_sides() -> None:
    deep: object = 1
    for _ in range(trees.DEPTH + 1):
        deep = [deep]
    with pytest.raises(ModelError, match="nested more than 64 deep"):
        pack(deep)
    skeleton = b"\x92\xa1l" * 100_000 + b"\x01"
    head = trees._HEAD.pack(trees._MAGIC, len(skeleton), trees._HEAD.size + len(skeleton))
    with pytest.raises(WireError):
        unpack(head + skeleton)


def test_a_skeleton_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "SKELETON_BYTES", 10)
    with pytest.raises(ModelError, match="more than the 10 that travel"):
        pack("a string longer than that")


def test_an_array_that_claims_more_than_the_buffer_holds_is_refused() -> None:
    packed = pack(np.zeros(4, "float32"))
    with pytest.raises(WireError, match="lies outside the buffer"):
        unpack(packed.replace(b"\x91\x04", b"\x91\x7f"))
