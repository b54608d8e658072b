"""Models of plain numpy arrays: one loop for all strategies."""

import numpy as np
import pytest
from pool_of_threads import Alone, Place, Pool

from manyhands.errors import ModelError, ProtocolError
from manyhands.sharing.outer import Nesterov
from manyhands.sharing.strategy import DiLoCo, EveryStep, LocalSGD, Strategy
from manyhands.sharing.tree import unpack
from manyhands.worker.driving import driver_for

RATE = 0.05


def model(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((4, 3)).astype("float32"), "b": np.zeros(3, "float32")}


def data(rank: int, step: int, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([rank, step])
    return rng.standard_normal((n, 4)).astype("float32"), rng.standard_normal((n, 3)).astype("float32")


def gradient(p: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Of the mean over samples of ½(x·w + b − y)²."""
    error = (x @ p["w"] + p["b"] - y) / len(x)
    return {"w": x.T @ error, "b": error.sum(0)}


def loop(place: Place | Alone, strategy: Strategy, steps: int, n: int = 8) -> dict[str, np.ndarray]:
    p = model()
    shared = driver_for(p, None, strategy)
    shared.attach(place) if isinstance(place, Alone) else place.share(shared)
    rank = 0 if isinstance(place, Alone) else place.rank
    for step in range(steps):
        averaged = shared.average(gradient(p, *data(rank, step, n)))
        for name in p:
            p[name] -= np.float32(RATE) * averaged[name]
        shared.step()
    return p


def plain(steps: int, rank: int = 0) -> dict[str, np.ndarray]:
    p = model()
    for step in range(steps):
        for name, g in gradient(p, *data(rank, step)).items():
            p[name] -= np.float32(RATE) * g
    return p


@pytest.mark.parametrize("strategy", [EveryStep(), LocalSGD(1)], ids=str)
@pytest.mark.parametrize("devices", [2, 3, 4])
def test_the_averaging_equation_without_torch(strategy: Strategy, devices: int) -> None:
    expected = {name: np.mean([plain(1, rank)[name] for rank in range(devices)], axis=0) for name in model()}
    for ours in Pool(devices).run(lambda place: loop(place, strategy, 1)):
        for name in expected:
            np.testing.assert_allclose(ours[name], expected[name], rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("sizes", [[8, 8], [4, 8, 1]])
def test_every_step_equals_one_process_with_all_samples(sizes: list[int]) -> None:
    p = model()
    for step in range(10):
        parts = [data(rank, step, n) for rank, n in enumerate(sizes)]
        for name, g in gradient(p, *(np.concatenate(part) for part in zip(*parts, strict=True))).items():
            p[name] -= np.float32(RATE) * g

    def worker(place: Place) -> dict[str, np.ndarray]:
        place.weight = sizes[place.rank]
        return loop(place, EveryStep(), 10, sizes[place.rank])

    for ours in Pool(len(sizes)).run(worker):
        for name, value in p.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", [LocalSGD(3), DiLoCo(3, Nesterov(0.7, 0.9))], ids=str)
def test_local_strategies_are_those_of_the_reference(strategy: Strategy) -> None:
    base, momentum = model(), {name: 0 * value for name, value in model().items()}
    for number in range(3):
        ends = []
        for rank in range(2):
            p = {name: value.copy() for name, value in base.items()}
            for step in range(3 * number, 3 * number + 3):
                for name, g in gradient(p, *data(rank, step)).items():
                    p[name] -= np.float32(RATE) * g
            ends.append(p)
        for name in base:
            update = base[name] - np.mean([end[name] for end in ends], axis=0)
            if strategy == LocalSGD(3):
                base[name] = base[name] - update
            else:
                momentum[name] = 0.9 * momentum[name] + update
                base[name] = base[name] - 0.7 * (update + 0.9 * momentum[name])
    for ours in Pool(2).run(lambda place: loop(place, strategy, 9)):
        for name in base:
            np.testing.assert_allclose(ours[name], base[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", [EveryStep(), LocalSGD(2)], ids=str)
def test_alone_the_loop_is_the_plain_one_bit_for_bit(strategy: Strategy) -> None:
    ours = loop(Alone(), strategy, 5)
    assert all(ours[name].tobytes() == value.tobytes() for name, value in plain(5).items())


def test_alone_the_very_gradients_come_back() -> None:
    p = model()
    shared = driver_for(p, None, EveryStep())
    shared.attach(Alone())
    gradients = gradient(p, *data(0, 0))
    assert shared.average(gradients) is gradients


@pytest.mark.parametrize("container", [list, tuple])
def test_a_list_or_tuple_of_arrays_is_shared_and_averaged_in_kind(container: type) -> None:
    def worker(place: Place) -> object:
        p = container([np.ones(3), np.zeros((2, 2), "float16"), np.array(1.0, "float32")])
        shared = place.share(driver_for(p, None, EveryStep()))
        assert shared.layout.dtype == np.float64
        ours = [np.full(3, float(place.rank)), None, np.array(3.0 * place.rank)]
        return shared.average(container(ours if place.rank else [*ours[:2], None]))

    for averaged in Pool(2).run(worker):
        assert type(averaged) is container
        np.testing.assert_array_equal(averaged[0], [0.5] * 3)
        assert averaged[1] is None
        assert averaged[2] == 1.5
        assert averaged[2].dtype == np.float32


def test_a_gradient_that_only_some_have_is_averaged_with_zeros_and_one_nobody_has_is_missing() -> None:
    def worker(place: Place) -> dict[str, np.ndarray]:
        p = {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}
        shared = place.share(driver_for(p, None, EveryStep()))
        return shared.average({"a": np.full(2, 4.0)} if place.rank else {"b": np.full(2, 2.0)})

    for averaged in Pool(2).run(worker):
        assert set(averaged) == {"a", "b"}
        np.testing.assert_array_equal(averaged["a"], [2, 2])
        np.testing.assert_array_equal(averaged["b"], [1, 1])


def test_a_gradient_that_is_not_finite_is_rejected_by_name() -> None:
    def worker(place: Place) -> dict[str, np.ndarray]:
        shared = place.share(driver_for(model(), None, EveryStep()))
        gradients = {name: np.ones_like(value) for name, value in model().items()}
        if place.rank == 0:
            gradients["b"][1] = np.inf
        averaged = shared.average(gradients)
        assert place.rejections == (["an infinity in the gradient of b"] if place.rank == 0 else [""])
        return averaged

    for averaged in Pool(2).run(worker):
        assert all((value == 1).all() for value in averaged.values())


def test_a_gradient_that_cannot_be_encoded_is_rejected_and_not_announced() -> None:
    def worker(place: Place) -> tuple[list[str], list[int]]:
        shared = place.share(driver_for(model(), None, EveryStep()))
        place.problems = {0: "1e6 is too great"} if place.rank == 0 else {}
        shared.average({name: np.ones_like(value) for name, value in model().items()})
        return place.rejections, place.early

    assert Pool(2).run(worker) == [(["1e6 is too great"], []), ([""], [0])]


def test_a_round_without_any_weight_gives_zeros() -> None:
    def worker(place: Place) -> dict[str, np.ndarray]:
        place.weight = 0
        return place.share(driver_for(model(), None, EveryStep())).average(model())

    for averaged in Pool(2).run(worker):
        assert {name: value.shape for name, value in averaged.items()} == {"w": (4, 3), "b": (3,)}
        assert not any(value.any() for value in averaged.values())


def test_averages_are_the_scripts_own_arrays() -> None:
    def worker(place: Place) -> None:
        shared = place.share(driver_for(model(), None, EveryStep()))
        first = shared.average(model(1))
        kept = first["w"].copy()
        shared.average(model(2))
        np.testing.assert_array_equal(first["w"], kept)
        second = shared.combined[:12].copy()
        shared.average(model(2))["w"][:] = 0
        np.testing.assert_array_equal(shared.combined[:12], second)

    Pool(1).run(worker)


class Momentum:
    """A script's own optimizer."""

    def __init__(self) -> None:
        self.m = {name: np.zeros_like(value) for name, value in model().items()}
        self.rate = 0.1

    def step(self, p: dict[str, np.ndarray], g: dict[str, np.ndarray]) -> None:
        for name in p:
            self.m[name] = np.float32(0.9) * self.m[name] + g[name]
            p[name] -= np.float32(self.rate) * self.m[name]

    def state_dict(self) -> dict[str, object]:
        return {"m": self.m, "rate": self.rate}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.m, self.rate = state["m"], state["rate"]


class Decay:
    """A script's own schedule."""

    def __init__(self, optimizer: Momentum) -> None:
        self.optimizer, self.turns = optimizer, 0

    def step(self) -> None:
        self.turns += 1
        self.optimizer.rate = 0.1 / (1 + self.turns)

    def state_dict(self) -> dict[str, int]:
        return {"turns": self.turns}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.turns = state["turns"]


def train(place: Place, steps: list[tuple[int, int]], seed: int = 0, source: bytes | None = None) -> object:
    p, optimizer = model(seed), Momentum()
    schedule = Decay(optimizer)
    shared = place.share(driver_for(p, optimizer, EveryStep(), [schedule]))
    if source is not None:
        shared.install(unpack(source))
    for rank, step in steps:
        optimizer.step(p, shared.average(gradient(p, *data(rank, step))))
        shared.step()
        schedule.step()
    whole = [*p.values(), *optimizer.m.values(), np.array([optimizer.rate, schedule.turns])]
    return [array.tobytes() for array in whole]


def test_a_joiner_goes_on_bit_for_bit_as_its_donor() -> None:
    def donor(place: Place) -> tuple[bytes, object]:
        place.capture_in = {3}
        return train(place, [(0, step) for step in range(6)]), bytes(place.captured[3])

    ((expected, captured),) = Pool(1).run(donor)
    (late,) = Pool(1).run(lambda place: train(place, [(0, step) for step in range(3, 6)], 7, captured))
    assert late == expected

    def replaced(place: Place) -> object:
        place.replaced_in, place.source = {2}, lambda: captured
        return train(place, [(5, 0), (5, 1), (5, 2), (0, 3), (0, 4), (0, 5)], 7)

    (healed,) = Pool(1).run(replaced)
    assert healed == expected


def test_a_replaced_worker_that_never_calls_step_heals_in_average() -> None:
    captured: list[bytes] = []

    def donor(place: Place) -> None:
        place.capture_in = {0}
        train(place, [(0, 0)])
        captured.append(bytes(place.captured[0]))

    def patient(place: Place) -> None:
        place.replaced_in, place.source = {0}, lambda: captured[0]
        p = model(3)
        shared = place.share(driver_for(p, Momentum(), EveryStep(), [Decay(Momentum())]))
        assert not shared.average(model(1))["w"].any()
        assert not shared.average(model(1))["w"].any()
        np.testing.assert_array_equal(p["w"], model()["w"])
        assert shared.average(model(1))["w"].any()

    Pool(1).run(donor)
    Pool(1).run(patient)


def test_arrays_may_be_rebound_but_not_change_their_kind() -> None:
    def worker(place: Place) -> None:
        p = model()
        shared = place.share(driver_for(p, None, LocalSGD(1)))
        p["w"] = p["w"] - np.float32(1)
        shared.step()
        np.testing.assert_allclose(p["w"], model()["w"] - 1, rtol=1e-6, atol=1e-6)
        p["w"] = p["w"].astype("float64")
        with pytest.raises(ModelError, match=r"'w' in the model was an array of float32.*now is float64"):
            shared.step()

    Pool(1).run(worker)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({}, "has no array to share"),
        ([], "has no array to share"),
        ({"w": [1.0, 2.0]}, "'w' in the model is a list; share numpy arrays only"),
        ({"n": np.arange(3)}, "'n' in the model is an array of int64, which has no average"),
        ([np.zeros(3), np.zeros(3, "complex64")], "1 in the model is an array of complex64"),
        ([np.zeros(0)], "nothing to train"),
    ],
)
def test_what_cannot_be_shared_is_named(bad: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        driver_for(bad, None, EveryStep())


@pytest.mark.parametrize(
    ("gradients", "words"),
    [
        (
            {"w": np.zeros((4, 3)), "x": np.zeros(1)},
            r"\['w', 'x'\]\) do not fit the model, which holds \['w', 'b'\]",
        ),
        ([np.zeros((4, 3)), np.zeros(3)], "2 of them"),
        ({"w": np.zeros((3, 4))}, r"The gradient of 'w' has shape \(3, 4\), the parameter has \(4, 3\)"),
    ],
)
def test_gradients_that_do_not_fit_are_named(gradients: object, words: str) -> None:
    shared = Pool(1).places[0].share(driver_for(model(), None, EveryStep()))
    with pytest.raises(ModelError, match=words):
        shared.average(gradients)


def test_every_step_for_arrays_cannot_take_part_without_the_script() -> None:
    driver = driver_for(model(), None, EveryStep())
    assert driver.needs_user_step
    assert driver.flush() is None
    for impossible in (driver.idle, driver.refill):
        with pytest.raises(ProtocolError):
            impossible()


def test_a_pool_of_one_is_never_idle() -> None:
    shared = driver_for(model(), None, LocalSGD(1))
    shared.attach(Alone())
    with pytest.raises(ProtocolError, match="a pool of one"):
        shared.idle()
