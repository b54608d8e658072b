import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from manyhands.core.messages import Tensor
from manyhands.errors import ProtocolError
from manyhands.sharing.layout import Layout, slices

SHAPES = some.lists(some.lists(some.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=8)


def layout_of(*shapes: tuple[int, ...], segment_bytes: int = 40) -> Layout:
    return Layout(tuple(Tensor(str(i), shape, "float32") for i, shape in enumerate(shapes)), segment_bytes)


def test_tensors_lie_one_after_another() -> None:
    layout = layout_of((3, 4), (), (5,), (0,), (2, 2))
    assert layout.sizes == (12, 1, 5, 0, 4)
    assert layout.offsets == (0, 12, 13, 18, 18)
    assert layout.elements == 22
    assert layout.nbytes == 88
    assert layout.segments == ((0, 10), (10, 20), (20, 22))
    assert [list(touched) for touched in layout.touched] == [[0, 1], [1], [1], [], [1, 2]]


def test_a_view_is_the_tensor_in_its_shape_without_a_copy() -> None:
    layout = layout_of((3, 4), (), (5,))
    vector = np.arange(layout.elements, dtype=layout.dtype)
    layout.view(vector, 0)[1, 2] = -1
    layout.view(vector, 1)[...] = -2
    assert vector[6] == -1
    assert vector[12] == -2


def test_the_vector_is_double_only_where_a_tensor_is() -> None:
    assert layout_of((3,)).dtype == np.float32
    mixed = (Tensor("a", (3,), "bfloat16"), Tensor("b", (1,), "float64"))
    assert Layout(mixed).dtype == np.float64
    assert Layout((Tensor("a", (3,), "float16"), Tensor("n", (), "int64"))).dtype == np.float32


@given(SHAPES, some.integers(4, 100))
def test_segments_cover_the_vector_and_each_knows_its_tensors(
    shapes: list[tuple[int, ...]], size: int
) -> None:
    layout = layout_of(*shapes, segment_bytes=size)
    covered = [i for a, b in layout.segments for i in range(a, b)]
    assert covered == list(range(layout.elements))
    for i, (offset, length) in enumerate(zip(layout.offsets, layout.sizes, strict=True)):
        expected = [
            s for s, (a, b) in enumerate(layout.segments) if length and a < offset + length and offset < b
        ]
        assert list(layout.touched[i]) == expected


@given(some.integers(0, 1000), some.integers(0, 1000), some.integers(1, 20))
def test_slices_cover_a_segment_in_rank_order_with_equal_lengths(a: int, length: int, size: int) -> None:
    cut = slices((a, a + length), (1,) * size)
    assert len(cut) == size
    assert cut[0][0] == a
    assert cut[-1][1] == a + length
    assert all(left[1] == right[0] for left, right in itertools.pairwise(cut))
    lengths = [stop - start for start, stop in cut]
    assert max(lengths) - min(lengths) <= 1


def test_slices_of_a_numbered_segment_are_places_in_the_whole_vector() -> None:
    assert layout_of((25,)).slices(2, (1, 1)) == [(20, 23), (23, 25)]
    assert layout_of((25,)).slices(2, (3, 0, 1, 1)) == [(20, 23), (23, 23), (23, 24), (24, 25)]


@pytest.mark.parametrize("shares", [(), (0, 0), (2, -1)])
def test_a_segment_is_not_cut_into_shares_that_are_none(shares: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="shares of"):
        slices((0, 5), shares)
