"""Buffers are averaged with each round, stay the same on all members, and constants never drift."""

import pytest
import torch
from pool_of_threads import Place, Pool, here, seeded
from torch import nn

from manyhands.errors import ModelError
from manyhands.frameworks.torch.buffers import Buffers
from manyhands.frameworks.torch.staging import Staging
from manyhands.sharing.strategy import DiLoCo, EveryStep, LocalSGD, Strategy
from manyhands.worker.driving import driver_for

pytestmark = pytest.mark.usefixtures("device")

STRATEGIES = [EveryStep(), LocalSGD(1), DiLoCo(1)]


def net() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)))


def batch(rank: int, step: int) -> torch.Tensor:
    return here(torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * rank + step)) + rank)


def train(place: Place, model: nn.Module, strategy: Strategy, steps: int) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    place.share(driver_for(model, optimizer, strategy))
    for step in range(steps):
        x = batch(place.rank, step)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_statistics_move_by_the_mean_of_the_members_and_counters_stay_whole(strategy: Strategy) -> None:
    model = net()
    expected = []
    for rank in range(3):
        alone = net()
        alone(batch(rank, 0))
        expected.append(dict(alone.named_buffers()))
    for buffers in Pool(3).run(lambda place: train(place, net(), strategy, 1)):
        assert buffers["1.num_batches_tracked"].item() == 1
        for name in ("1.running_mean", "1.running_var"):
            torch.testing.assert_close(buffers[name], torch.stack([e[name] for e in expected]).mean(0))
            assert not torch.equal(buffers[name], dict(model.named_buffers())[name])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_after_several_rounds_all_members_hold_the_same_buffers(strategy: Strategy) -> None:
    results = Pool(3).run(lambda place: train(place, net(), strategy, 5))
    for buffers in results:
        assert all(torch.equal(buffer, results[0][name]) for name, buffer in buffers.items())
    assert results[0]["1.num_batches_tracked"].item() == 5


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("third", torch.full((5,), 1 / 3))
        self.register_buffer("large", torch.tensor(2**53 + 1))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("phase", torch.tensor([1j]))
        self.register_buffer("tenth", torch.tensor([0.1], dtype=torch.bfloat16))
        self.register_buffer("cache", torch.zeros(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache = torch.zeros(len(x), device=x.device)
        return self.layer(x)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_constants_of_any_kind_keep_their_bits(strategy: Strategy) -> None:
    before = dict(seeded(Constants).named_buffers())
    for buffers in Pool(3).run(lambda place: train(place, seeded(Constants), strategy, 20)):
        for name in set(before) - {"cache"}:
            assert torch.equal(buffers[name], before[name])
            assert buffers[name].dtype == before[name].dtype


def test_only_persistent_buffers_with_a_mean_are_shared() -> None:
    buffers = Buffers(Constants(), Staging({}))
    assert [tensor.name for tensor in buffers.tensors] == ["third", "large", "flags", "tenth"]


def test_a_flag_follows_the_majority() -> None:
    def worker(place: Place) -> list[bool]:
        model = seeded(Constants)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        place.share(driver_for(model, optimizer, EveryStep()))
        model.flags[0] = place.rank == 0
        model.flags[1] = place.rank != 0
        model(here(torch.ones(1, 4))).sum().backward()
        return model.flags.tolist()

    assert Pool(3).run(worker) == [[False, True]] * 3


def test_a_rejected_worker_takes_the_others_statistics() -> None:
    def worker(place: Place) -> dict[str, torch.Tensor]:
        model = net()
        place.share(driver_for(model, None, EveryStep()))
        x = here(torch.ones(8, 4) * torch.arange(8.0)[:, None])
        model(x * float("nan") if place.rank == 0 else x).square().mean().backward()
        return {name: buffer.clone() for name, buffer in model.named_buffers()}

    first, second = Pool(2).run(worker)
    for name, buffer in first.items():
        assert torch.isfinite(buffer.float()).all()
        assert torch.equal(buffer, second[name])


def test_a_round_without_any_weight_takes_the_statistics_back() -> None:
    def worker(place: Place) -> bool:
        model = net()
        place.share(driver_for(model, None, EveryStep()))
        place.weight = 0
        model(here(torch.arange(32.0).reshape(8, 4))).square().mean().backward()
        return all(torch.equal(b, c) for b, c in zip(model.buffers(), net().buffers(), strict=True))

    assert Pool(2).run(worker) == [True, True]


def test_tied_buffers_are_shared_once_and_a_removed_one_is_named() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.again = self.norm

    buffers = Buffers(model := Tied(), Staging({}))
    assert len(buffers.tensors) == 3
    model.norm.running_mean = None
    with pytest.raises(ModelError, match="The buffer running_mean of a BatchNorm1d was removed"):
        buffers.restore()
