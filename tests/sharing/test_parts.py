"""A packed state in parts that are known by their digests."""

from __future__ import annotations

import numpy as np
import pytest

from manyhands.errors import WireError
from manyhands.sharing import parts, tree
from manyhands.sharing.parts import Assembly, Cut


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 256)


def packed(words: str = "", start: int = 0) -> bytearray:
    """Plain values of some length, and arrays of 4 parts and a half."""
    return tree.pack({"words": words, "array": np.arange(start, start + 288, dtype=np.float32)})


def fill(assembly: Assembly, whole: bytearray, cut: Cut, only: int | None = None) -> None:
    for digest, (start, stop) in list(zip(cut.parts, cut.bounds, strict=True))[:only]:
        if digest in assembly.lacking:
            assembly.put(digest, memoryview(whole)[start:stop])


@pytest.mark.parametrize("words", ["", "w" * 300])
def test_a_state_put_together_from_its_parts_is_the_same(words: str) -> None:
    whole = packed(words)
    cut = Cut.of(whole)
    assembly = Assembly(Cut(cut.length, cut.arrays, cut.digests))
    assert list(assembly.lacking) == cut.parts
    fill(assembly, whole, cut)
    assert not assembly.lacking
    assert bytes(assembly.packed) == whole


def test_arrays_have_the_same_parts_whatever_plain_values_stand_before_them() -> None:
    one, other = Cut.of(packed("a" * 10)), Cut.of(packed("b" * 500))
    assert one.arrays != other.arrays
    assert len(set(one.parts) & set(other.parts)) == 5


def test_parts_that_are_alike_are_fetched_once() -> None:
    whole = tree.pack({"zeros": np.zeros(1024, np.float32)})
    cut = Cut.of(whole)
    assembly = Assembly(cut)
    assert len(assembly.lacking) == 2
    fill(assembly, whole, cut)
    assert bytes(assembly.packed) == whole


def test_what_another_assembly_has_of_a_state_is_taken_from_there() -> None:
    before, now = packed("before" * 40), packed("now")
    begun = Assembly(Cut.of(before))
    fill(begun, before, Cut.of(before), only=5)
    goes_on = Assembly(Cut.of(now), begun)
    shared = set(Cut.of(before).parts[:5]) & set(Cut.of(now).parts)
    assert len(shared) == 3
    assert goes_on.lacking.keys() == set(Cut.of(now).parts) - shared
    fill(goes_on, now, Cut.of(now))
    assert bytes(goes_on.packed) == now


def test_a_cut_whose_digests_are_not_as_many_as_its_parts_is_refused() -> None:
    Cut(1000, 100, bytes(16 * 5))
    with pytest.raises(WireError, match="a state of 1000 bytes with arrays from byte 100 on has 5 parts"):
        Cut(1000, 100, bytes(16 * 4))
