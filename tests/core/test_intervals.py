from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from manyhands.core.intervals import Intervals

edge = st.integers(0, 60)
operation = st.tuples(st.sampled_from(["add", "remove", "pop"]), edge, edge)


@given(st.lists(operation, max_size=40))
def test_intervals_behave_like_a_set_of_integers(operations: list[tuple[str, int, int]]) -> None:
    ours, model = Intervals(), set[int]()
    for name, a, b in operations:
        span = set(range(a, b))
        if name == "add":
            assert ours.add(a, b) == len(span - model)
            model |= span
        elif name == "remove":
            assert ours.remove(a, b) == len(span & model)
            model -= span
        else:
            expected = sorted(model)[:a]
            assert [i for start, stop in ours.pop_first(a) for i in range(start, stop)] == expected
            model -= set(expected)
        assert {i for start, stop in ours for i in range(start, stop)} == model
        assert ours.total == len(model)
        assert [i for s, e in ours.overlap(a, b) for i in range(s, e)] == sorted(span & model)
        pairs = ours.pairs()
        assert all(stop < start for (_, stop), (start, _) in pairwise(pairs))
        assert all((i in ours) == (i in model) for i in range(62))


def test_an_epoch_of_a_billion_samples_costs_kilobytes() -> None:
    committed = Intervals()
    for block in range(0, 10**9, 2 * 10**6):
        committed.add(block, block + 10**6)
    assert committed.total == 5 * 10**8
    assert len(committed) == 500
