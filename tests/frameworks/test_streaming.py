"""Updates in fragments, and in the background of local steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pool_of_threads import Alone, Place, Pool, here, seeded

from manyhands.errors import ModelError, StrategyError
from manyhands.frameworks.streaming import Streaming, fragments
from manyhands.sharing.outer import SGD
from manyhands.sharing.strategy import PLAIN, LocalSGD, Strategy, StreamingDiLoCo
from manyhands.worker.driving import driver_for


def arrays(n: int = 10) -> dict[str, np.ndarray]:
    return {"w": np.zeros(n, np.float32), "b": np.zeros((2, 3), np.float32)}


def streamed(every: int, *, fragments: int = 2, overlap: int = 0, mix: float = 0.5) -> Strategy:
    return StreamingDiLoCo(every, SGD(1.0), fragments=fragments, overlap=overlap, mix=mix, encode=PLAIN)


def local_step(params: dict[str, np.ndarray], rank: int, number: int) -> None:
    rng = np.random.default_rng([rank, number])
    for array in params.values():
        array -= rng.normal(size=array.shape).astype(np.float32)


def run(strategy: Strategy, steps: int, size: int = 2) -> list[dict[str, np.ndarray]]:
    """What the parameters of each worker are at the end, after everything was shared."""

    def work(place: Place) -> dict[str, np.ndarray]:
        params = arrays()
        driver = place.share(driver_for(params, None, strategy))
        for number in range(steps):
            local_step(params, place.rank, number)
            driver.step()
        while driver.flush() is not None:
            pass
        driver.detach()
        return params

    return Pool(size).run(work)


@pytest.mark.parametrize(
    "strategy", [streamed(4), streamed(6, fragments=3, overlap=1), streamed(4, fragments=1, overlap=3)]
)
def test_at_the_end_all_hold_the_same_bits(strategy: Strategy) -> None:
    first, second = run(strategy, 11)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("pieces", [2, 3])
def test_each_fragment_is_averaged_in_its_turn_and_left_alone_in_between(pieces: int) -> None:
    local = [np.concatenate([array.ravel() for array in arrays().values()]) for _ in range(2)]
    cuts = [len(local[0]) * i // pieces for i in range(pieces + 1)]
    turns, interval = 0, 6 // pieces
    for number in range(11):
        for rank, vector in enumerate(local):
            params = {"w": vector[:10], "b": vector[10:].reshape(2, 3)}
            local_step(params, rank, number)
        if (number + 1) % interval == 0:
            part = slice(cuts[turns % pieces], cuts[turns % pieces + 1])
            local[0][part] = local[1][part] = (local[0][part] + local[1][part]) / 2
            turns += 1
    expected = (local[0] + local[1]) / 2
    found = run(streamed(6, fragments=pieces), 11)[0]
    np.testing.assert_allclose(np.concatenate([found["w"], found["b"].ravel()]), expected, atol=1e-5)


def test_with_one_fragment_and_nothing_overlapped_it_is_the_plain_driver() -> None:
    assert not isinstance(driver_for(arrays(), None, LocalSGD(3)), Streaming)
    assert isinstance(driver_for(arrays(), None, streamed(4)), Streaming)


def test_what_was_learned_meanwhile_is_mixed_with_the_result() -> None:
    def work(place: Place) -> list[float]:
        params = {"w": np.zeros(1, np.float32)}
        driver = place.share(driver_for(params, None, streamed(2, fragments=1, overlap=1, mix=0.25)))
        seen = []
        for _ in range(3):
            params["w"] -= 1.0 + place.rank
            driver.step()
            seen.append(float(params["w"][0]))
        while driver.flush() is not None:
            pass
        driver.detach()
        return seen

    first, second = Pool(2).run(work)
    # after two steps they stand at -2 and -4, which makes -3; a step later they are at -3 and -6
    assert first == [-1.0, -2.0, 0.25 * -3 + 0.75 * -3]
    assert second == [-2.0, -4.0, 0.25 * -6 + 0.75 * -3]


def test_who_was_late_has_what_it_learned_on_top_of_what_the_others_did() -> None:
    place = Pool(1).places[0]
    params = {"w": np.zeros(4, np.float32)}
    place.share(driver_for(params, None, streamed(6, fragments=2, overlap=1)))
    params["w"] -= 1.0
    place.driver.step()
    place.late[0] = np.full(2, 5.0, np.float32)
    params["w"] -= 1.0
    place.driver.step()
    assert params["w"].tolist() == [-2.0 - 5.0, -2.0 - 5.0, -2.0, -2.0]
    assert len(place.digests) == 1
    while place.driver.flush() is not None:  # its turn is over; it still owes both
        pass
    place.driver.detach()
    assert place.rounds == 3
    assert params["w"].tolist() == [-7.0, -7.0, -2.0, -2.0]


def test_who_misses_a_round_in_each_of_its_steps_contributes_where_all_others_wait() -> None:
    place = Pool(1).places[0]
    params = {"w": np.zeros(4, np.float32)}
    place.share(driver_for(params, None, streamed(1_000, fragments=2, overlap=1)))
    place.hurry = True
    for _ in range(3):
        place.late[place.rounds] = np.zeros(2, np.float32)
        params["w"] -= 1.0
        place.driver.step()
    assert len(place.rejections) >= 2


def test_what_was_left_out_does_not_come_back_in_the_mixture() -> None:
    def work(place: Place) -> list[float]:
        params = {"w": np.zeros(1, np.float32)}
        driver = place.share(driver_for(params, None, streamed(2, fragments=1, overlap=1, mix=0.5)))
        for number in range(3):
            params["w"] -= np.float32(np.nan if place.rank and number == 1 else 1.0)
            driver.step()
            if place.rank and number == 1:
                params["w"][:] = 1e6  # it goes on with what is of no use
        seen = float(params["w"][0])
        while driver.flush() is not None:
            pass
        driver.detach()
        return [seen]

    first, second = Pool(2).run(work)
    assert first == [0.5 * -3 + 0.5 * -2]
    assert second == [-2.0]


def test_alone_fragments_take_their_turns_as_in_a_pool() -> None:
    strategy = StreamingDiLoCo(4, fragments=2, overlap=0, encode=PLAIN)

    def work(place: Place | Alone) -> dict[str, np.ndarray]:
        params = arrays()
        driver = driver_for(params, None, strategy)
        driver.attach(place)
        if isinstance(place, Place):
            place.driver = driver
        for number in range(8):
            local_step(params, 0, number)
            driver.step()
        return params

    (pooled,) = Pool(1).run(work)
    alone = work(Alone())
    for name in alone:
        np.testing.assert_array_equal(alone[name], pooled[name])


def test_the_exchanged_vectors_are_one_fragment_long() -> None:
    driver = driver_for({"w": np.zeros(1000, np.float32)}, None, streamed(10, fragments=5))
    assert len(driver.contribution) == len(driver.combined) == 200
    assert driver.tensors[0].shape == (1000,)


def test_fragments_cover_everything_once_and_buffers_go_with_the_last() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    driver = driver_for(model, torch.optim.SGD(model.parameters(), 0.1), streamed(9, fragments=3))
    assert isinstance(driver, Streaming)
    surface = driver._surface
    cuts = fragments(surface, 3)
    assert [a for a, _ in cuts[1:]] == [b for _, b in cuts[:-1]]
    assert (cuts[0][0], cuts[-1][1]) == (0, surface.layout.elements)
    assert cuts[-1][0] < surface.parameters <= surface.layout.elements - 11


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_with_buffers_ends_the_same_everywhere(dtype: torch.dtype) -> None:
    def work(place: Place) -> list[torch.Tensor]:
        model = seeded(lambda: torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))).to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        driver = place.share(driver_for(model, optimizer, streamed(4, fragments=2, overlap=1)))
        generator = torch.Generator().manual_seed(place.rank)
        for _ in range(9):
            optimizer.zero_grad()
            model(here(torch.randn(8, 3, generator=generator).to(dtype))).square().sum().backward()
            optimizer.step()
        while driver.flush() is not None:
            pass
        driver.detach()
        return [*model.parameters(), *model.buffers()]

    first, second = Pool(2).run(work)
    for mine, other in zip(first, second, strict=True):
        assert torch.equal(mine, other)


def test_more_fragments_than_parameters_are_refused() -> None:
    with pytest.raises(ModelError, match="2 parameters cannot be shared in 3 fragments"):
        driver_for({"w": np.zeros(2, np.float32)}, None, streamed(9, fragments=3))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"fragments": 0}, "fragments=0 must be a whole number, 1 or more"),
        ({"overlap": -1}, "overlap=-1 must be a whole number, 0 or more"),
        ({"mix": 1.5}, "mix=1.5 must be a number from 0 to below 1"),
        ({"mix": 1}, "mix=1 must be a number from 0 to below 1"),
        ({"fragments": 9}, "fragments=9 cannot take turns within every=8 steps"),
        ({"fragments": 2, "overlap": 4}, r"overlap=4 must be .*, 4 steps: .*; give every=9 or more"),
    ],
)
def test_nonsense_is_named(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StrategyError, match=sentence):
        streamed(8, **values)
