from hypothesis import given
from hypothesis import strategies as some

from manyhands.frameworks.presence import mask, union

BITS = some.integers(1, 40).flatmap(lambda n: some.lists(some.lists(some.booleans(), min_size=n, max_size=n)))


@given(BITS)
def test_the_union_has_a_bit_where_any_member_has_one(members: list[list[bool]]) -> None:
    tensors = len(members[0]) if members else 3
    bits = union([mask(present) for present in members], tensors)
    for i in range(tensors):
        assert bool(bits >> i & 1) == any(present[i] for present in members)
    assert bits >> tensors == 0


def test_all_tensors_cost_nothing_on_the_wire() -> None:
    assert mask([True] * 1000) == b""
    assert mask([True] * 9 + [False]) == b"\xff\x01"


def test_bits_of_tensors_that_are_not_there_are_left_out() -> None:
    assert union([b"\xff\xff"], 3) == 0b111
