"""LocalSGD and DiLoCo against a straightforward reference, for modules of PyTorch."""

import threading

import numpy as np
import pool_of_threads
import pytest
import torch
from pool_of_threads import DEADLINE, Alone, Place, Pool, here, seeded
from torch import nn

from manyhands.core.digests import TURNED_OVER
from manyhands.errors import ModelError, ProtocolError
from manyhands.sharing.outer import SGD, Nesterov
from manyhands.sharing.strategy import DiLoCo, LocalSGD, Strategy, StreamingDiLoCo
from manyhands.sharing.tree import pack
from manyhands.worker.driving import Outcome, driver_for

pytestmark = pytest.mark.usefixtures("device")

ADAMW = torch.optim.AdamW


def net() -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)))


def local_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int,
    steps: range,
    dtype: torch.dtype = torch.float32,
) -> None:
    for step in steps:
        x = here(torch.randn(4, 4, generator=torch.Generator().manual_seed(100 * rank + step)).to(dtype))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def reference(strategy: Strategy, weights: list[float], rounds: int) -> list[torch.Tensor]:
    """Every worker by turns, and torch's own SGD as the outer optimizer."""
    models = [net() for _ in weights]
    inner = [ADAMW(model.parameters(), lr=0.01) for model in models]
    base = [p.clone().requires_grad_() for p in parameters(models[0])]
    outer = strategy.outer
    momentum = {"momentum": outer.momentum, "nesterov": True} if isinstance(outer, Nesterov) else {}
    optimizer = torch.optim.SGD(base, lr=outer.lr, **momentum)
    for number in range(rounds):
        for rank, model in enumerate(models):
            local_steps(
                model, inner[rank], rank, range(number * strategy.every, (number + 1) * strategy.every)
            )
        with torch.no_grad():
            for i, b in enumerate(base):
                moved = [w * (b - parameters(model)[i]) for w, model in zip(weights, models, strict=True)]
                b.grad = torch.stack(moved).sum(0) / sum(weights)
        optimizer.step()
        with torch.no_grad():
            for model in models:
                for p, b in zip(model.parameters(), base, strict=True):
                    p.copy_(b)
    return [b.detach() for b in base]


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0, 4.0]])
@pytest.mark.parametrize(
    "strategy",
    [LocalSGD(1), LocalSGD(3), DiLoCo(3), DiLoCo(2, Nesterov(0.5, 0.5)), DiLoCo(2, SGD(0.5))],
    ids=str,
)
def test_several_rounds_are_those_of_the_reference(strategy: Strategy, weights: list[float]) -> None:
    def worker(place: Place) -> list[torch.Tensor]:
        model = net()
        optimizer = ADAMW(model.parameters(), lr=0.01)
        place.share(driver_for(model, optimizer, strategy))
        place.weight = weights[place.rank]
        local_steps(model, optimizer, place.rank, range(4 * strategy.every))
        assert place.rounds == 4
        return parameters(model)

    expected = reference(strategy, weights, rounds=4)
    results = Pool(len(weights)).run(worker)
    for ours in results:
        assert all(map(torch.equal, ours, results[0]))
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_between_rounds_the_model_is_the_scripts_own() -> None:
    def worker(place: Place | None) -> list[torch.Tensor]:
        model = net()
        optimizer = ADAMW(model.parameters(), lr=0.01)
        if place is not None:
            place.share(driver_for(model, optimizer, DiLoCo(10)))
        local_steps(model, optimizer, 0, range(9))
        return parameters(model)

    (ours,) = Pool(1).run(worker)
    assert all(map(torch.equal, ours, worker(None)))


def test_alone_local_sgd_is_the_plain_loop_bit_for_bit_and_takes_no_memory() -> None:
    model, plain = net(), net()
    optimizer = ADAMW(model.parameters(), lr=0.01)
    driver = driver_for(model, optimizer, LocalSGD(2))
    driver.attach(Alone())
    local_steps(model, optimizer, 0, range(7))
    local_steps(plain, ADAMW(plain.parameters(), lr=0.01), 0, range(7))
    assert all(map(torch.equal, parameters(model), parameters(plain)))
    assert driver.flush() is None
    assert "contribution" not in vars(driver)
    assert "_base" not in vars(driver)


def test_alone_diloco_does_the_outer_step_with_its_own_update() -> None:
    model = net()
    optimizer = ADAMW(model.parameters(), lr=0.01)
    driver_for(model, optimizer, DiLoCo(3)).attach(Alone())
    local_steps(model, optimizer, 0, range(12))
    for a, b in zip(parameters(model), reference(DiLoCo(3), [1.0], 4), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_who_is_awaited_proposes_at_the_next_step() -> None:
    def worker(place: Place) -> int:
        model = net()
        optimizer = ADAMW(model.parameters(), lr=0.01)
        place.share(driver_for(model, optimizer, LocalSGD(5)))
        if place.rank == 0:
            local_steps(model, optimizer, 0, range(5))
        else:
            local_steps(model, optimizer, 1, range(1))
            place.hurry = True
            local_steps(model, optimizer, 1, range(1, 2))
        return place.rounds

    assert Pool(2).run(worker) == [1, 1]


def test_who_was_late_has_what_it_learned_on_top_of_what_the_others_did() -> None:
    place = Pool(1).places[0]
    params = {"w": np.zeros(2, np.float32)}
    driver = place.share(driver_for(params, None, DiLoCo(5, SGD(0.5))))
    params["w"] -= 1.0
    driver.step()
    place.late[0] = np.full(2, 4.0, np.float32)
    params["w"] -= 1.0
    driver.step()
    assert params["w"].tolist() == [-2.0 - 2.0] * 2
    base = driver.capture()["vector"]  # type: ignore[index, call-overload]
    assert base.tolist() == [-2.0, -2.0]  # type: ignore[union-attr]
    driver.flush()
    assert params["w"].tolist() == [-2.0 - 1.0] * 2  # half of its own two steps


def test_who_misses_rounds_shares_what_it_learned_after_its_own_number_of_steps_all_the_same() -> None:
    """Else who is in a step at each deadline contributes nothing until the data are at an end."""
    place = Pool(1).places[0]
    params = {"w": np.zeros(2, np.float32)}
    driver = place.share(driver_for(params, None, LocalSGD(2)))
    for step in range(20):
        if step % 2:
            place.late[place.rounds] = np.zeros(2, np.float32)
        params["w"] -= 1.0
        driver.step()
    assert place.rejections, "it has taken 20 steps, and has proposed nothing"


def test_who_misses_a_round_in_each_of_its_steps_contributes_where_all_others_wait() -> None:
    place = Pool(1).places[0]
    params = {"w": np.zeros(2, np.float32)}
    driver = place.share(driver_for(params, None, LocalSGD(1_000)))
    place.hurry = True
    for _ in range(3):
        place.late[place.rounds] = np.zeros(2, np.float32)
        params["w"] -= 1.0
        driver.step()
    assert place.rejections == ["", "", ""]
    assert params["w"].tolist() == [-3.0, -3.0]


def test_what_is_not_a_number_is_no_less_rejected_after_a_round_that_was_missed() -> None:
    """Its samples are committed with the next contribution, in which nothing of them is."""
    place = Pool(1).places[0]
    params = {"w": np.zeros(2, np.float32)}
    driver = place.share(driver_for(params, None, LocalSGD(5)))
    params["w"] += np.nan
    place.late[0] = np.zeros(2, np.float32)
    driver.step()
    driver.flush()
    assert place.rejections
    assert place.rejections[0]


def test_a_round_that_was_missed_at_the_very_end_is_in_the_model() -> None:
    place = Pool(1).places[0]
    params = {"w": np.zeros(2, np.float32)}
    driver = place.share(driver_for(params, None, LocalSGD(5)))
    params["w"] -= 1.0
    driver.step()
    place.late[0] = np.full(2, 4.0, np.float32)
    driver.detach()
    assert params["w"].tolist() == [-4.0, -4.0]


def test_flush_proposes_what_is_left_and_only_that() -> None:
    def worker(place: Place) -> list[torch.Tensor]:
        model = net()
        optimizer = ADAMW(model.parameters(), lr=0.01)
        driver = place.share(driver_for(model, optimizer, LocalSGD(3)))
        assert driver.flush() is None
        local_steps(model, optimizer, place.rank, range(5))
        outcome = driver.flush()
        assert isinstance(outcome, Outcome)
        assert outcome.total_weight == 2
        assert driver.flush() is None
        assert place.rounds == 2
        return parameters(model)

    first, second = Pool(2).run(worker)
    assert all(map(torch.equal, first, second))


def test_who_has_nothing_left_takes_part_idle_until_the_others_are_done() -> None:
    def worker(place: Place) -> list[torch.Tensor]:
        model = net()
        optimizer = ADAMW(model.parameters(), lr=0.01)
        driver = place.share(driver_for(model, optimizer, DiLoCo(2)))
        assert not driver.needs_user_step
        if place.rank == 0:
            place.weight = 0
            for _ in range(3):
                driver.idle()
        else:
            local_steps(model, optimizer, 0, range(6))
        assert place.rounds == 3
        return parameters(model)

    for ours in Pool(2).run(worker):
        for a, b in zip(ours, reference(DiLoCo(2), [1.0], 3), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_round_of_idle_members_only_changes_nothing() -> None:
    def worker(place: Place) -> bool:
        model = net()
        optimizer = ADAMW(model.parameters(), lr=0.01)
        driver = place.share(driver_for(model, optimizer, DiLoCo(2)))
        local_steps(model, optimizer, place.rank, range(2))
        before, digest = parameters(model), driver.digest()
        place.weight = 0
        driver.idle()
        return all(map(torch.equal, parameters(model), before)) and driver.digest() == digest

    assert Pool(2).run(worker) == [True, True]


@pytest.mark.parametrize(("bad", "name"), [(float("nan"), "NaN"), (float("inf"), "an infinity")])
def test_an_update_that_is_not_finite_is_rejected_by_name_and_its_worker_goes_on_with_the_others(
    bad: float, name: str
) -> None:
    def worker(place: Place) -> list[torch.Tensor]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        place.share(driver_for(model, optimizer, LocalSGD(2)))
        if place.rank == 0:
            local_steps(model, optimizer, 0, range(1))
            with torch.no_grad():
                model[2].weight[0, 3] = bad
            optimizer.zero_grad()
            optimizer.step()
            assert place.rejections == [f"{name} in the update of 2.weight"]
        else:
            local_steps(model, optimizer, 1, range(2))
            assert place.rejections == [""]
        return parameters(model)

    model = net()
    local_steps(model, torch.optim.SGD(model.parameters(), lr=0.01), 1, range(2))
    for ours in Pool(2).run(worker):
        for a, b in zip(ours, parameters(model), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_of_an_update_that_cannot_be_encoded_no_segment_is_announced() -> None:
    """It is combined in place: what a reducer has taken in cannot be taken out again."""

    def worker(place: Place) -> tuple[list[str], list[int]]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        driver = driver_for(model, optimizer, LocalSGD(2))
        object.__setattr__(driver.layout, "segment_bytes", 64)
        place.share(driver)
        place.problems = {1: "1e6 is too great"} if place.rank == 0 else {}
        local_steps(model, optimizer, place.rank, range(2))
        return place.rejections, place.early

    assert Pool(2).run(worker) == [(["1e6 is too great"], []), ([""], [0, 1, 2, 3])]


def test_when_all_are_rejected_everyone_goes_back_to_the_last_version() -> None:
    def worker(place: Place) -> bool:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        place.share(driver_for(model, optimizer, DiLoCo(1)))
        local_steps(model, optimizer, place.rank, range(1))
        before = parameters(model)
        model[0].bias.register_hook(lambda grad: grad * float("nan"))
        local_steps(model, optimizer, place.rank, range(1, 2))
        return all(map(torch.equal, parameters(model), before))

    assert Pool(2).run(worker) == [True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_other_dtypes_hold_exactly_the_version(dtype: torch.dtype) -> None:
    def worker(place: Place) -> list[torch.Tensor]:
        model = net().to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        driver = place.share(driver_for(model, optimizer, DiLoCo(2)))
        local_steps(model, optimizer, place.rank, range(6), dtype)
        held = np.zeros_like(driver.contribution)
        driver._surface.read(held)
        np.testing.assert_array_equal(held, driver.capture()["vector"])
        assert all(p.dtype == dtype for p in model.parameters())
        return parameters(model)

    first, second = Pool(2).run(worker)
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], net().to(dtype)[0].weight)


def test_parameters_in_another_memory_format_hold_exactly_the_version() -> None:
    def worker(place: Place) -> list[torch.Tensor]:
        model = seeded(lambda: nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        driver = place.share(driver_for(model, optimizer, DiLoCo(1)))
        for step in range(3):
            generator = torch.Generator().manual_seed(10 * place.rank + step)
            optimizer.zero_grad()
            model(here(torch.randn(2, 3, 5, 5, generator=generator))).square().mean().backward()
            optimizer.step()
        held = np.zeros_like(driver.contribution)
        driver._surface.read(held)
        np.testing.assert_array_equal(held, driver.capture()["vector"])
        return parameters(model)

    first, second = Pool(2).run(worker)
    assert all(map(torch.equal, first, second))


def test_frozen_and_tied_parameters_are_left_alone_and_shared_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.third.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))

    def worker(place: Place) -> list[torch.Tensor]:
        model = seeded(Tied)
        optimizer = ADAMW(model.parameters(), lr=0.01)
        driver = place.share(driver_for(model, optimizer, DiLoCo(2)))
        assert [tensor.name for tensor in driver.tensors] == ["second.bias", "first.bias", "first.weight"]
        before = model.third.weight.clone()
        local_steps(model, optimizer, place.rank, range(4))
        assert torch.equal(model.third.weight, before)
        assert model.second.weight is model.first.weight
        return parameters(model)

    first, second = Pool(2).run(worker)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("strategy", [DiLoCo(2), StreamingDiLoCo(2, fragments=2, overlap=0)])
@pytest.mark.parametrize("rank", [0, 1])
def test_who_finds_a_bit_turned_over_spoils_no_contribution_and_takes_up_the_state_of_the_others(
    strategy: Strategy, rank: int
) -> None:
    pool, changed = Pool(2), threading.Condition()
    broken, whole = pool.places[rank], pool.places[1 - rank]
    adopts = whole.adopted

    def adopted() -> None:
        adopts()
        with changed:
            changed.notify_all()

    def state_of_the_others() -> bytearray:
        with changed:
            assert changed.wait_for(lambda: len(whole.digests) == broken.rounds, DEADLINE)
        return pack(whole.driver.capture())

    whole.adopted, broken.source = adopted, state_of_the_others  # type: ignore[method-assign]

    def worker(place: Place) -> float:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        driver = place.share(driver_for(model, optimizer, strategy))
        local_steps(model, optimizer, place.rank, range(3))
        if place is broken:
            driver.committed()[0].view(np.uint32)[5] ^= 1 << 30
        local_steps(model, optimizer, place.rank, range(3, 9))
        return max(float(p.abs().max()) for p in parameters(model))

    assert max(pool.run(worker)) < 10
    assert broken.resigned == [TURNED_OVER]
    found = broken.rejections.index(TURNED_OVER)
    assert not any((*broken.rejections[:found], *broken.rejections[found + 1 :], *whole.rejections))
    assert broken.digests == [*whole.digests[:found], *whole.digests[found + 1 :]]


def test_who_missed_a_round_with_a_bit_turned_over_takes_up_the_state_of_the_others() -> None:
    place = Pool(2).places[0]
    params = {"w": np.zeros(2, np.float32)}
    driver = place.share(driver_for(params, None, LocalSGD(5)))
    others = pack(driver.capture())
    place.source = lambda: others
    params["w"] -= 1.0
    driver.step()
    driver.committed()[0].view(np.uint32)[1] ^= 1 << 30
    place.late[0] = np.full(2, 4.0, np.float32)
    driver.step()
    assert place.resigned == [TURNED_OVER]
    assert params["w"].tolist() == [0.0, 0.0]
    driver.flush()
    assert not place.rejections


def test_a_scaler_that_skips_a_step_does_not_count_it() -> None:
    def worker(place: Place) -> int:
        model = net()
        optimizer = ADAMW(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler(pool_of_threads.DEVICE)
        place.share(driver_for(model, optimizer, LocalSGD(2), [scaler]))
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale(model(here(torch.ones(1, 4))).sum() * (float("inf") if step == 1 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
        return place.rounds

    assert Pool(1).run(worker) == [1]


def test_memory_is_three_times_the_parameters() -> None:
    place = Pool(1).places[0]
    model = here(nn.Linear(100, 100))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = place.share(driver_for(model, optimizer, DiLoCo(1)))
    local_steps_of_linear(model, optimizer)
    held = {
        id(array): array
        for array in (driver.contribution, driver.combined, driver._base, *driver._outer_state)
    }
    assert sum(array.nbytes for array in held.values()) == 3 * 10_100 * 4


def local_steps_of_linear(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(here(torch.ones(1, 100))).sum().backward()
    optimizer.step()


def test_after_detach_steps_are_not_counted() -> None:
    place = Pool(1).places[0]
    model = net()
    optimizer = ADAMW(model.parameters(), lr=0.01)
    driver = place.share(driver_for(model, optimizer, LocalSGD(2)))
    local_steps(model, optimizer, 0, range(3))
    driver.detach()
    local_steps(model, optimizer, 0, range(3))
    assert place.rounds == 1
    with pytest.raises(ProtocolError):
        driver.flush()


def test_the_script_may_call_step_without_counting_twice() -> None:
    place = Pool(1).places[0]
    model = net()
    optimizer = ADAMW(model.parameters(), lr=0.01)
    driver = place.share(driver_for(model, optimizer, LocalSGD(2)))
    for step in range(4):
        local_steps(model, optimizer, 0, range(step, step + 1))
        driver.step()
    assert place.rounds == 2


@pytest.mark.parametrize("strategy", [LocalSGD(3), DiLoCo(100)], ids=str)
def test_a_local_strategy_without_an_optimizer_is_refused(strategy: Strategy) -> None:
    with pytest.raises(
        ModelError, match=r"counts the steps of an optimizer.*share\(model, optimizer, strategy\)"
    ):
        driver_for(net(), None, strategy)
