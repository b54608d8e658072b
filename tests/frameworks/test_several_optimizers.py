"""Muon for the matrices and AdamW for all else, under every strategy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pool_of_threads import Place, Pool, seeded
from torch import nn

from manyhands.errors import ModelError
from manyhands.frameworks.companions import convert
from manyhands.frameworks.torch.leaves import to_tree
from manyhands.sharing.outer import SGD
from manyhands.sharing.strategy import PLAIN, DiLoCo, EveryStep, LocalSGD, Strategy, StreamingDiLoCo
from manyhands.sharing.tree import pack, unpack
from manyhands.worker.driving import driver_for

pytestmark = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason=f"torch {torch.__version__} has no Muon"
)

STREAMED = StreamingDiLoCo(4, SGD(1.0), fragments=2, overlap=1, encode=PLAIN)
STRATEGIES = [EveryStep(), LocalSGD(2), DiLoCo(2), STREAMED]


class Training:
    """A script's loop body with two optimizers, each with a schedule."""

    def __init__(self, place: Place | None, strategy: Strategy, seed: int = 0) -> None:
        self.model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), seed)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if p.ndim != 2]
        self.optimizers = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)]
        self.schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.9) for each in self.optimizers]
        self.driver = driver_for(self.model, self.optimizers, strategy, self.schedules)
        if place is not None:
            place.share(self.driver)

    def gradients(self, rank: int, step: int) -> None:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * rank + step))
        self.model.zero_grad()
        (self.model(x) - 1).square().mean().backward()

    def step(self, rank: int, step: int) -> None:
        self.gradients(rank, step)
        for each in [*self.optimizers, *self.schedules]:
            each.step()

    def parameters(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def state(self) -> bytearray:
        parts = [self.model, *self.optimizers, *self.schedules]
        return pack(convert([part.state_dict() for part in parts], to_tree))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_two_optimizers_make_one_local_step_and_all_end_with_the_same_bits(strategy: Strategy) -> None:
    def worker(place: Place) -> list[torch.Tensor]:
        training = Training(place, strategy)
        for step in range(8):
            training.step(place.rank, step)
        assert place.rounds == {EveryStep(): 8, STREAMED: 3}.get(strategy, 4)
        while training.driver.flush() is not None:
            pass
        training.driver.detach()
        return training.parameters()

    first, second = Pool(2).run(worker)
    assert all(map(torch.equal, first, second))
    assert not any(map(torch.equal, first, Training(None, strategy).parameters()))


def test_every_step_with_two_optimizers_is_the_plain_loop_where_all_read_the_same() -> None:
    def worker(place: Place | None) -> bytearray:
        training = Training(place, EveryStep())
        for step in range(5):
            training.step(0, step)
        return training.state()

    plain = worker(None)
    assert Pool(2).run(worker) == [plain, plain]


def test_under_every_step_who_heals_goes_on_bit_for_bit_as_its_donor() -> None:
    """The patient's step 2 comes to nothing; it gets the state after its donor's step 2."""

    def donor(place: Place) -> tuple[bytearray, bytearray]:
        place.capture_in = {3}
        training = Training(place, EveryStep())
        for step in range(6):
            training.step(0, step)
        return place.captured[3], training.state()

    ((captured, expected),) = Pool(1).run(donor)

    def patient(place: Place) -> bytearray:
        place.replaced_in, place.source = {2}, lambda: captured
        training = Training(place, EveryStep(), seed=9)
        for step in range(6):
            training.step(5 if step < 3 else 0, step)
        return training.state()

    assert Pool(1).run(patient) == [expected]


@pytest.mark.parametrize("strategy", STRATEGIES[1:], ids=str)
def test_with_local_steps_who_heals_has_the_states_and_rates_of_both_optimizers(strategy: Strategy) -> None:
    def states(training: Training) -> object:
        return pack(convert([each.state_dict() for each in training.optimizers], to_tree))

    def donor(place: Place) -> bytearray:
        place.capture_in = {2}
        training = Training(place, strategy)
        for step in range(6):
            training.step(0, step)
        return place.captured[2]

    (captured,) = Pool(1).run(donor)

    def patient(place: Place) -> None:
        training = Training(place, strategy, seed=9)
        place.replaced_in = {1}

        def heal() -> None:
            training.driver.install(unpack(captured))
            assert states(training) == pack(list(unpack(captured)["optimizers"].values()))
            healed.append(place.rounds)

        place.heal, healed = heal, []
        while not healed:
            training.step(1, place.rounds)
        assert [each.last_epoch for each in training.schedules] == [6, 6]
        for each, rate in zip(training.optimizers, (0.02, 0.01), strict=True):
            assert each.param_groups[0]["lr"] == pytest.approx(rate * 0.9**6)

    Pool(1).run(patient)


@pytest.mark.parametrize("strategy", STRATEGIES[1:], ids=str)
def test_a_step_without_the_last_optimizer_counts_with_the_next_one_and_is_shared_at_the_end(
    strategy: Strategy,
) -> None:
    def worker(place: Place) -> list[torch.Tensor]:
        training = Training(place, strategy)
        for step in range(3):
            training.gradients(place.rank, step)
            training.optimizers[0].step()
        assert place.rounds == 0
        assert training.driver.flush() is not None
        while training.driver.flush() is not None:
            pass
        training.driver.detach()
        return training.parameters()

    first, second = Pool(2).run(worker)
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], Training(None, strategy).parameters()[0])


def test_a_first_optimizer_may_step_more_rarely_than_the_last() -> None:
    def worker(place: Place) -> int:
        training = Training(place, LocalSGD(2))
        for step in range(8):
            training.gradients(place.rank, step)
            if step % 4 == 3:
                training.optimizers[0].step()
            training.optimizers[1].step()
        return place.rounds

    assert Pool(2).run(worker) == [4, 4]


def test_under_every_step_an_order_that_is_not_the_scripts_is_refused() -> None:
    def worker(place: Place) -> None:
        training = Training(place, EveryStep())
        training.step(0, 0)
        training.gradients(0, 1)
        training.optimizers[1].step()
        with pytest.raises(ModelError, match=r"stepped after optimizer\[1\] \(AdamW\); give share\(\)"):
            training.optimizers[0].step()

    Pool(1).run(worker)


def test_what_cannot_be_shared_is_named() -> None:
    model = nn.Linear(3, 1)
    muon = torch.optim.Muon([model.weight])
    rest = torch.optim.AdamW([model.bias])
    both = torch.optim.AdamW(model.parameters())
    more = torch.optim.AdamW([model.bias, *nn.Linear(7, 5).parameters()])
    for optimizers, sentence in [
        (
            [muon, 0.1],
            r"The optimizer\[1\] is a float; share\(model, optimizer, strategy\) takes a torch.optim",
        ),
        (
            (muon, both),
            r"weight is trained by optimizer\[0\] \(Muon\) and by optimizer\[1\] \(AdamW\); leave",
        ),
        ([muon, more], r"The optimizer\[1\] \(AdamW\) also trains a parameter of shape \(5, 7\)"),
        ([], "counts the steps of an optimizer, and there is none"),
    ]:
        with pytest.raises(ModelError, match=sentence):
            driver_for(model, optimizers, LocalSGD(2))
    state = pack(Pool(1).places[0].share(driver_for(model, [muon, rest], EveryStep())).capture())
    with pytest.raises(
        ModelError, match=r"shares optimizer\[0\] \(Muon\), optimizer\[1\] .* this one no optimizer"
    ):
        driver_for(model, None, EveryStep()).install(unpack(state))
    with pytest.raises(ModelError, match=r"got 2 optimizers for a model of arrays; give one object"):
        driver_for({"w": np.zeros(2)}, [muon, rest], EveryStep())
