"""What one member captures another installs, and both go on bit for bit alike."""

import copy

import numpy as np
import pool_of_threads
import pytest
import torch
from pool_of_threads import Place, Pool, here, seeded
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from manyhands.errors import ModelError
from manyhands.frameworks.torch.leaves import bits, from_tree, to_tree
from manyhands.sharing.strategy import DiLoCo, EveryStep, LocalSGD, Strategy
from manyhands.sharing.tree import pack, unpack
from manyhands.worker.driving import driver_for


class Training:
    """A script's loop body with all that has a state: AdamW, a schedule, a scaler, a moving average."""

    def __init__(
        self, place: Place | None, strategy: Strategy, seed: int = 0, dtype: torch.dtype = torch.float32
    ):
        def build() -> nn.Module:
            model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2), nn.Linear(2, 2)).to(
                dtype
            )
            model[3].requires_grad_(False)
            return model

        self.model, self.dtype = seeded(build, seed), dtype
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.scaler = torch.amp.GradScaler(pool_of_threads.DEVICE, init_scale=4.0, growth_interval=3)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        self.driver = driver_for(
            self.model, self.optimizer, strategy, [self.schedule, self.scaler, self.average]
        )
        if place is not None:
            place.share(self.driver)

    def step(self, rank: int, step: int) -> None:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * rank + step))
        self.optimizer.zero_grad()
        self.scaler.scale(self.model(here(x.to(self.dtype))).square().mean()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.average.update_parameters(self.model)

    def state(self) -> bytearray:
        whole = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict(),
        }
        return pack(tree_of(whole))


def tree_of(value: object) -> object:
    if isinstance(value, dict):
        return {key: tree_of(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [tree_of(part) for part in value]
    return to_tree(value)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_joiner_at_the_head_of_its_loop_goes_on_bit_for_bit_as_its_donor(dtype: torch.dtype) -> None:
    """The donor captures in the middle of step 4's round; the joiner installs, and does step 4 itself."""

    def donor(place: Place) -> tuple[bytearray, bytearray]:
        place.capture_in = {4}
        training = Training(place, EveryStep(), dtype=dtype)
        for step in range(8):
            training.step(0, step)
        return place.captured[4], training.state()

    ((captured, expected),) = Pool(1).run(donor)

    def joiner(place: Place) -> bytearray:
        training = Training(place, EveryStep(), seed=9, dtype=dtype)
        training.driver.install(unpack(captured))
        for step in range(4, 8):
            training.step(0, step)
        return training.state()

    (ours,) = Pool(1).run(joiner)
    assert ours == expected


@pytest.mark.usefixtures("device")
def test_who_is_replaced_heals_at_its_step_and_goes_on_bit_for_bit_as_its_donor() -> None:
    """The patient's step 2 comes to nothing; it gets the state after its donor's step 2, and goes on."""

    def donor(place: Place) -> tuple[bytearray, bytearray]:
        place.capture_in = {3}
        training = Training(place, EveryStep())
        for step in range(8):
            training.step(0, step)
        return place.captured[3], training.state()

    ((captured, expected),) = Pool(1).run(donor)

    def patient(place: Place) -> bytearray:
        place.replaced_in, place.source = {2}, lambda: captured
        training = Training(place, EveryStep(), seed=9)
        for step in range(3):
            training.step(5, step)
        assert all(not p.grad.any() for p in training.driver._parameters)
        for step in range(3, 8):
            training.step(0, step)
        return training.state()

    (ours,) = Pool(1).run(patient)
    assert ours == expected


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("strategy", [LocalSGD(2), DiLoCo(2)], ids=str)
def test_with_local_steps_a_captured_state_is_the_last_version(strategy: Strategy, late: bool) -> None:
    def donor(place: Place) -> tuple[bytearray, str, list[torch.Tensor]]:
        place.capture_in = {2}
        training = Training(place, strategy)
        for step in range(4):
            training.step(0, step)
        version = [tensor.clone() for tensor in training.model.state_dict().values()]
        for step in range(4, 6):
            training.step(0, step)
        return place.captured[2], place.digests[1], version

    ((captured, digest, version),) = Pool(1).run(donor)

    def patient(place: Place) -> bytearray:
        training = Training(place, strategy, seed=9)
        if late:
            training.driver.install(unpack(captured))
        else:
            place.replaced_in, place.source = {1}, lambda: captured
            for step in range(4):
                training.step(3, step)
        assert training.driver.digest() == digest
        assert all(map(torch.equal, training.model.state_dict().values(), version))
        assert training.optimizer.state_dict()["state"][0]["step"] == 6
        for step in range(10, 12):
            training.step(0, step)
        assert place.rounds == (1 if late else 3)
        return training.state()

    first, second = Pool(1).run(patient) + Pool(1).run(patient)
    assert first == second


class Asked(Place):
    """A worker that is asked for its state in the middle of a round: after its third local step."""

    looks = 0
    midway = bytearray()

    @property
    def hurry(self) -> bool:
        self.looks += 1
        if self.looks == 3:
            self.midway = pack(self.driver.capture())
        return False

    @hurry.setter
    def hurry(self, value: bool) -> None:
        pass


def counts(training: Training) -> tuple[int, int, float]:
    """How often the optimizer and the schedule have stepped, and the learning rate."""
    steps = int(training.optimizer.state_dict()["state"][0]["step"])
    return steps, training.schedule.last_epoch, training.optimizer.param_groups[0]["lr"]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("healing", [False, True])
@pytest.mark.parametrize("strategy", [LocalSGD, DiLoCo])
@pytest.mark.parametrize(
    ("captured_in", "every"), [("the middle of a round", 4), ("the end of a round", 3), ("the iterator", 4)]
)
def test_with_local_steps_the_schedule_of_a_joiner_is_in_step_with_its_optimizer(
    strategy: type[LocalSGD] | type[DiLoCo], captured_in: str, every: int, healing: bool
) -> None:
    """As its donor's is: at the end of the donor's third loop body, and of the next."""

    def donor(place: Place) -> tuple[bytearray, list[tuple[int, int, float]]]:
        assert isinstance(place, Asked)
        place.capture_in = {0}
        training = Training(place, strategy(every))
        for step in range(3):
            training.step(0, step)
        third = counts(training)
        captured = pack(training.driver.capture())
        training.step(0, 3)
        if captured_in != "the iterator":
            captured = place.captured[0] if every == 3 else place.midway
        return captured, [third, counts(training)]

    pool = Pool(1)
    pool.places = [Asked(pool, 0)]
    ((captured, expected),) = pool.run(donor)

    def joiner(place: Place) -> list[tuple[int, int, float]]:
        place.replaced_in, place.source = {0}, lambda: captured
        training = Training(place, strategy(every), seed=9)
        if healing:  # in its last local step
            for step in range(every):
                training.step(1, step)
        else:
            training.driver.install(unpack(captured))
            if captured_in != "the iterator":
                training.step(1, 2)
        third = counts(training)
        training.step(1, 3)
        return [third, counts(training)]

    (ours,) = Pool(1).run(joiner)
    assert ours == expected


@pytest.mark.usefixtures("device")
def test_while_out_of_the_pool_gradients_stay_zero_and_nothing_is_announced() -> None:
    def donor(place: Place) -> bytearray:
        place.capture_in = {1}
        training = Training(place, EveryStep())
        for step in range(2):
            training.step(0, step)
        return place.captured[1]

    (captured,) = Pool(1).run(donor)

    def patient(place: Place) -> None:
        place.replaced_in, place.source = {1}, lambda: captured
        training = Training(place, EveryStep())
        training.step(0, 0)
        place.early.clear()
        for _ in range(3):  # backward() without a step: there is no place to heal at yet
            training.scaler.scale(training.model(here(torch.randn(8, 4))).square().mean()).backward()
            assert all(not p.grad.any() for p in training.driver._parameters)
        assert place.rounds == 2
        training.scaler.step(training.optimizer)
        training.scaler.update()
        training.step(0, 2)
        assert place.rounds == 3
        assert all(p.grad.any() for p in training.driver._parameters[1:])

    Pool(1).run(patient)


@pytest.mark.usefixtures("device")
def test_without_an_optimizer_a_replaced_worker_heals_at_the_end_of_the_next_backward() -> None:
    source = seeded(lambda: nn.Linear(3, 1))
    captured = pack(driver_for(source, None, EveryStep()).capture())

    def patient(place: Place) -> None:
        place.replaced_in, place.source = {0}, lambda: captured
        model = seeded(lambda: nn.Linear(3, 1), 7)
        place.share(driver_for(model, None, EveryStep()))
        for _ in range(2):
            model.zero_grad()
            model(here(torch.ones(1, 3))).sum().backward()
            assert not model.weight.grad.any()
        assert torch.equal(model.weight, source.weight)
        model(here(torch.ones(1, 3))).sum().backward()
        assert model.weight.grad.all()

    Pool(1).run(patient)


def test_a_captured_state_names_what_does_not_fit() -> None:
    def tree_for(model: nn.Module, strategy: Strategy = EveryStep(), also: tuple = ()) -> object:  # noqa: B008
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        place = Pool(1).places[0]
        return unpack(pack(place.share(driver_for(model, optimizer, strategy, also)).capture()))

    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver = driver_for(model, optimizer, EveryStep())
    with pytest.raises(ModelError, match=r"weight has shape \(1, 3\) here and \(1, 4\) on another"):
        driver.install(tree_for(nn.Linear(4, 1)))
    with pytest.raises(ModelError, match="other parameters; run the same script"):
        driver.install(tree_for(nn.Linear(3, 1, bias=False)))
    with pytest.raises(ModelError, match="other buffers"):
        driver.install(tree_for(with_buffer()))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    with pytest.raises(
        ModelError, match=r"shares optimizer \(SGD\) and 1 further objects, this one .* and 0;"
    ):
        driver.install(tree_for(nn.Linear(3, 1), also=(schedule,)))
    local = driver_for(model, optimizer, LocalSGD(1))
    with pytest.raises(
        ModelError, match=r"The vector of another worker \(5 elements\) does not fit.*\(4 elements\)"
    ):
        local.install(tree_for(nn.Linear(4, 1), LocalSGD(1)))


def with_buffer() -> nn.Module:
    model = nn.Linear(3, 1)
    model.register_buffer("extra", torch.zeros(1))
    return model


def test_a_state_that_cannot_travel_is_refused_when_sharing_begins() -> None:
    class Odd:
        def state_dict(self) -> dict[str, object]:
            return {"hook": print}

        def load_state_dict(self, state: object) -> None:
            pass

    driver = driver_for(nn.Linear(3, 1), None, EveryStep(), [Odd()])
    with pytest.raises(
        ModelError, match=r"also\[0\] \(Odd\)\['hook'\] is a builtins.builtin_function_or_method"
    ):
        driver.attach(Pool(1).places[0])
    with pytest.raises(ModelError, match=r"also\[0\] \(object\) is a object without state_dict"):
        driver_for(nn.Linear(3, 1), None, EveryStep(), [object()])


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 2, 5]),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
            [3],
        ),
    ],
)
def test_the_schedules_of_torch_travel(make: object) -> None:
    def training() -> tuple[nn.Module, torch.optim.Optimizer, object, object]:
        model = seeded(lambda: nn.Linear(3, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = make(optimizer)
        return model, optimizer, schedule, driver_for(model, optimizer, EveryStep(), [schedule])

    def go_on(optimizer: torch.optim.Optimizer, schedule: object, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            optimizer.step()
            schedule.step(*([1.0] if "Plateau" in type(schedule).__name__ else []))
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    _, optimizer, schedule, driver = training()
    go_on(optimizer, schedule, 4)
    captured = pack(driver.capture())
    _, joined, its_schedule, its_driver = training()
    its_driver.install(unpack(captured))
    assert go_on(joined, its_schedule, 6) == go_on(optimizer, schedule, 6)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.bool,
        torch.uint8,
        torch.int64,
        torch.complex64,
    ],
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2)])
def test_tensors_of_any_dtype_travel_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 200, shape).to(torch.float32).to(dtype)
    back = from_tree(unpack(pack(to_tree(tensor))))
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    np.testing.assert_array_equal(bits(back), bits(tensor))
    back.zero_()  # its memory is its own


def test_tensors_that_are_no_block_of_memory_travel() -> None:
    tensor = torch.arange(12.0).reshape(3, 4).t()[::2].requires_grad_()
    assert torch.equal(from_tree(unpack(pack(to_tree(tensor)))), tensor)
    assert copy.deepcopy(bits(tensor)).shape == (2, 3)
