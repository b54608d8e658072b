"""The gradients that backward() leaves are the pool's average, and training is as with one big batch."""

import copy
from collections.abc import Callable

import pytest
import torch
from pool_of_threads import Alone, Place, Pool, here, seeded
from torch import nn

from manyhands.errors import ModelError, ProtocolError
from manyhands.sharing.strategy import EveryStep, LocalSGD
from manyhands.worker.driving import driver_for

pytestmark = pytest.mark.usefixtures("device")


def net(seed: int = 0) -> nn.Module:
    return seeded(
        lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)),
        seed,
    )


def data(rank: int, step: int, n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(n, 6, generator=generator)
    return here(x), here(torch.randint(0, 3, (n,), generator=generator))


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_close(ours: list[torch.Tensor], reference: list[torch.Tensor]) -> None:
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("devices", [2, 3, 5])
@pytest.mark.parametrize("strategy", [EveryStep(), LocalSGD(1)])
def test_the_averaging_equation(devices: int, strategy: object) -> None:
    """θᵢ' = θᵢ − η∇J(θᵢ) on device i's own data, then θ_global = (1/n) Σ θᵢ'."""
    rate = 0.1

    def alone(rank: int) -> list[torch.Tensor]:
        model = net()
        x, y = data(rank, 0)
        nn.functional.cross_entropy(model(x), y).backward()
        return [p.detach() - rate * p.grad for p in model.parameters()]

    locally = [alone(rank) for rank in range(devices)]
    reference = [torch.stack(parts).double().mean(0).float() for parts in zip(*locally, strict=True)]

    def worker(place: Place) -> list[torch.Tensor]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        place.share(driver_for(model, optimizer, strategy))
        x, y = data(place.rank, 0)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        return parameters(model)

    for ours in Pool(devices).run(worker):
        assert_close(ours, reference)


@pytest.mark.parametrize("sizes", [[8, 8], [8, 8, 8], [1, 16], [5, 3, 9]])
@pytest.mark.parametrize("optimizer_of", [torch.optim.SGD, torch.optim.Adam])
def test_n_workers_equal_one_process_with_the_n_fold_batch(
    sizes: list[int], optimizer_of: Callable[..., torch.optim.Optimizer]
) -> None:
    model = net()
    optimizer = optimizer_of(model.parameters(), lr=0.01)
    for step in range(5):
        batches = [data(rank, step, n) for rank, n in enumerate(sizes)]
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    def worker(place: Place) -> list[torch.Tensor]:
        mine = net()
        stepping = optimizer_of(mine.parameters(), lr=0.01)
        place.share(driver_for(mine, stepping, EveryStep()))
        place.weight = sizes[place.rank]
        for step in range(5):
            x, y = data(place.rank, step, sizes[place.rank])
            stepping.zero_grad()
            nn.functional.cross_entropy(mine(x), y).backward()
            stepping.step()
        return parameters(mine)

    for ours in Pool(len(sizes)).run(worker):
        for a, b in zip(ours, parameters(model), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_segments_go_out_in_the_order_of_backward_and_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manyhands.sharing.layout.Layout.__init__.__defaults__", (256,))
    seen: list[list[int]] = []
    at_first_layer: list[int] = []

    def worker(place: Place) -> None:
        model = net()
        driver = place.share(driver_for(model, torch.optim.SGD(model.parameters(), lr=0.1), EveryStep()))
        assert len(driver.layout.segments) > 4
        model[0].weight.register_hook(lambda _: at_first_layer.append(len(place.early)))
        for step in range(3):
            place.early.clear()
            x, y = data(0, step)
            nn.functional.cross_entropy(model(x), y).backward()
            seen.append(list(place.early))

    Pool(1).run(worker)
    assert all(early == sorted(early) for early in seen)
    assert at_first_layer[0] == 0  # the first backward() watches what comes how often
    assert at_first_layer[1] > 2


def test_one_worker_with_the_pool_changes_not_a_bit() -> None:
    def train(place: Place | None) -> list[torch.Tensor]:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if place is not None:
            place.share(driver_for(model, optimizer, EveryStep()))
        for step in range(4):
            x, y = data(0, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return parameters(model)

    (ours,) = Pool(1).run(train)
    assert all(map(torch.equal, ours, train(None)))


def test_alone_no_hook_is_installed_and_no_memory_taken() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = driver_for(model, optimizer, EveryStep())
    driver.attach(Alone())
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())
    assert not optimizer._optimizer_step_post_hooks
    x, y = data(0, 0)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert "contribution" not in vars(driver)
    assert "combined" not in vars(driver)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_gradients_live_in_the_contribution() -> None:
    def worker(place: Place) -> None:
        model = net()
        driver = place.share(driver_for(model, torch.optim.SGD(model.parameters(), lr=0.1), EveryStep()))
        x, y = data(0, 0)
        nn.functional.cross_entropy(model(x), y).backward()
        start = driver.contribution.__array_interface__["data"][0]
        end = start + driver.contribution.nbytes
        assert all(start <= p.grad.data_ptr() < end for p in model.parameters())

    Pool(1).run(worker)


def test_after_detach_nothing_is_shared_and_the_model_goes_on() -> None:
    model = net()
    place = Pool(1).places[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = place.share(driver_for(model, optimizer, EveryStep()))
    x, y = data(0, 0)
    nn.functional.cross_entropy(model(x), y).backward()
    driver.detach()
    expected = copy.deepcopy(model)
    expected.zero_grad()
    optimizer.zero_grad()
    for it in (model, expected):
        nn.functional.cross_entropy(it(x), y).backward()
    assert all(
        torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), expected.parameters(), strict=True)
    )
    assert place.rounds == 1
    assert not optimizer._optimizer_step_post_hooks


def test_an_error_of_the_round_reaches_the_script() -> None:
    def worker(place: Place) -> None:
        model = net()
        place.share(driver_for(model, torch.optim.SGD(model.parameters(), lr=0.1), EveryStep()))

        def lost(*_: object) -> None:
            raise ModelError("the round said no")

        place.finish = lost  # type: ignore[method-assign]
        x, y = data(0, 0)
        with pytest.raises(ModelError, match="the round said no"):
            nn.functional.cross_entropy(model(x), y).backward()

    Pool(1).run(worker)


def test_every_step_cannot_take_part_without_the_script() -> None:
    driver = driver_for(net(), None, EveryStep())
    assert driver.needs_user_step
    assert driver.flush() is None
    for impossible in (driver.idle, driver.refill):
        with pytest.raises(ProtocolError):
            impossible()
