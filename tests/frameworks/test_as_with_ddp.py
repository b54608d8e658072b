"""EveryStep behaves as a user of DistributedDataParallel expects: one test for each expectation."""

import contextlib
import copy
from collections.abc import Callable

import pool_of_threads
import pytest
import torch
from pool_of_threads import Place, Pool, here, seeded
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from manyhands.errors import ModelError, StrategyError
from manyhands.sharing.encode.chain import chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.strategy import EveryStep, LocalSGD
from manyhands.worker.driving import driver_for

pytestmark = pytest.mark.usefixtures("device")

Grads = list[torch.Tensor | None]


def net() -> nn.Sequential:
    return seeded(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    )


def inputs(rank: int, step: int = 0, n: int = 4) -> torch.Tensor:
    return here(torch.randn(n, 4, generator=torch.Generator().manual_seed(100 * rank + step + 1)))


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean()


def share(
    place: Place, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, also: tuple = ()
) -> None:
    place.share(driver_for(model, optimizer, EveryStep(), also))


def grads(model: nn.Module) -> Grads:
    return [None if p.grad is None else p.grad.detach().clone() for p in model.parameters()]


def reference(
    workers: int, backward: Callable[[nn.Module, int], object], build: Callable[[], nn.Module] = net
) -> Grads:
    """The mean over the workers of what `backward(model, rank)` leaves without any sharing."""
    alone = []
    for rank in range(workers):
        model = build()
        backward(model, rank)
        alone.append(grads(model))
    return [
        None
        if all(part is None for part in parts)
        else torch.stack([torch.zeros_like(p) if g is None else g for g in parts]).mean(0)
        for parts, p in zip(zip(*alone, strict=True), build().parameters(), strict=True)
    ]


def assert_grads(ours: Grads, expected: Grads, tolerance: float = 1e-6) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=tolerance)


def check_backward(
    backward: Callable[[nn.Module, int], object],
    build: Callable[[], nn.Module] = net,
    workers: int = 2,
    rounds: int = 3,
    tolerance: float = 1e-6,
) -> None:
    """`rounds` times the same backward, from no gradients each time: all get the average, each time."""

    def worker(place: Place) -> list[Grads]:
        model = build()
        share(place, model)
        seen = []
        for _ in range(rounds):
            model.zero_grad()
            backward(model, place.rank)
            seen.append(grads(model))
        return seen

    expected = reference(workers, backward, build)
    for seen in Pool(workers).run(worker):
        for ours in seen:
            assert_grads(ours, expected, tolerance)


def test_accumulation_under_no_sync_shares_the_sum_with_the_next_backward() -> None:
    def worker(place: Place) -> list[Grads]:
        model = net()
        share(place, model)
        seen = []
        for _ in range(2):
            model.zero_grad()
            with place.driver.no_sync():
                loss_of(model, inputs(place.rank, 0)).backward()
                loss_of(model, inputs(place.rank, 1)).backward()
            assert_grads(grads(model), accumulated(net(), place.rank, 2))
            loss_of(model, inputs(place.rank, 2)).backward()
            seen.append(grads(model))
        assert place.rounds == 2
        return seen

    def accumulated(model: nn.Module, rank: int, steps: int) -> Grads:
        for step in range(steps):
            loss_of(model, inputs(rank, step)).backward()
        return grads(model)

    expected = reference(2, lambda model, rank: accumulated(model, rank, 3))
    for seen in Pool(2).run(worker):
        for ours in seen:
            assert_grads(ours, expected)


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_may_keep_or_drop_the_gradients(to_none: bool) -> None:
    def worker(place: Place) -> list[Grads]:
        model = net()
        share(place, model)
        seen = []
        for step in range(3):
            model.zero_grad(set_to_none=to_none)
            loss_of(model, inputs(place.rank, step)).backward()
            seen.append(grads(model))
        return seen

    for seen in Pool(2).run(worker):
        for step, ours in enumerate(seen):
            assert_grads(
                ours, reference(2, lambda model, rank, s=step: loss_of(model, inputs(rank, s)).backward())
            )


def test_clipping_after_backward_clips_the_average() -> None:
    def worker(place: Place) -> tuple[torch.Tensor, Grads]:
        model = net()
        share(place, model)
        for step in range(2):
            model.zero_grad()
            loss_of(model, inputs(place.rank, step)).backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        return norm, grads(model)

    model = net()
    for p, g in zip(
        model.parameters(), reference(3, lambda m, r: loss_of(m, inputs(r, 1)).backward()), strict=True
    ):
        p.grad = g
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    for our_norm, ours in Pool(3).run(worker):
        torch.testing.assert_close(our_norm, norm)
        assert_grads(ours, grads(model))


def test_several_backwards_add_up_to_the_sum_of_the_averages() -> None:
    def twice(model: nn.Module, rank: int) -> None:
        loss_of(model, inputs(rank, 0)).backward()
        loss_of(model, inputs(rank, 1)).backward()

    check_backward(twice)


def test_a_graph_that_is_kept_can_go_backward_again() -> None:
    def twice(model: nn.Module, rank: int) -> None:
        loss = loss_of(model, inputs(rank))
        loss.backward(retain_graph=True)
        loss.backward()

    check_backward(twice)


def test_a_kept_graph_with_frozen_batch_statistics_can_go_backward_again() -> None:
    def build() -> nn.Module:
        return seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval())

    def twice(model: nn.Module, rank: int) -> None:
        loss = loss_of(model, inputs(rank))
        loss.backward(retain_graph=True)
        loss.backward()

    check_backward(twice, build)


def test_backward_for_some_inputs_only_shares_those() -> None:
    check_backward(
        lambda model, rank: loss_of(model, inputs(rank)).backward(inputs=list(model[4].parameters()))
    )


def test_autograd_grad_shares_nothing() -> None:
    def worker(place: Place) -> None:
        model = net()
        share(place, model)
        torch.autograd.grad(loss_of(model, inputs(0)), list(model.parameters()))
        assert place.rounds == 0
        assert grads(model) == [None] * 6

    Pool(1).run(worker)


def test_a_gradient_penalty_is_averaged() -> None:
    def penalty(model: nn.Module, rank: int) -> None:
        x = inputs(rank).requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (loss_of(model, x) + slope.square().sum()).backward()

    check_backward(penalty)


class Branches(nn.Module):
    """Each rank uses its own branch; nobody uses the last."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4)
        self.branches = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))


def test_a_parameter_unused_here_gets_the_others_average_and_one_unused_everywhere_none() -> None:
    def backward(model: nn.Module, rank: int) -> None:
        model.branches[rank](model.trunk(inputs(rank))).square().mean().backward()

    check_backward(backward, lambda: seeded(Branches))
    assert reference(2, backward, lambda: seeded(Branches))[-1] is None


def test_what_only_a_rejected_contribution_used_stays_none() -> None:
    def worker(place: Place) -> Grads:
        model = seeded(Branches)
        share(place, model)
        x = inputs(place.rank) * (float("nan") if place.rank == 0 else 1)
        model.branches[place.rank](model.trunk(x)).square().mean().backward()
        return grads(model)

    model = seeded(Branches)
    model.branches[1](model.trunk(inputs(1))).square().mean().backward()
    for ours in Pool(2).run(worker):
        assert_grads(ours, grads(model))


def test_frozen_parameters_are_not_shared_and_get_no_gradient() -> None:
    def build() -> nn.Module:
        model = net()
        model[0].requires_grad_(False)
        return model

    check_backward(lambda model, rank: loss_of(model, inputs(rank)).backward(), build)
    driver = driver_for(build(), None, EveryStep())
    assert [tensor.name for tensor in driver.tensors] == ["4.bias", "4.weight", "2.bias", "2.weight"]


def test_a_parameter_may_be_frozen_later_but_not_thawed() -> None:
    def worker(place: Place) -> None:
        model = net()
        model[0].bias.requires_grad_(False)
        share(place, model)
        model[2].requires_grad_(False)
        loss_of(model, inputs(place.rank)).backward()
        assert model[2].weight.grad is None
        assert model[4].weight.grad is not None
        model[0].bias.requires_grad_(True)
        with pytest.raises(
            ModelError, match=r"0\.bias was frozen when the model was shared and now is trainable"
        ):
            loss_of(model, inputs(place.rank)).backward()

    Pool(1).run(worker)


def test_tied_weights_are_shared_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.tanh(self.first(x)))

    check_backward(lambda model, rank: loss_of(model, inputs(rank)).backward(), lambda: seeded(Tied))
    assert len(driver_for(Tied(), None, EveryStep()).tensors) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_other_dtypes_are_averaged_in_the_vector_and_stay_what_they_are(
    dtype: torch.dtype,
) -> None:
    def build() -> nn.Module:
        return net().to(dtype)

    tolerance = {torch.bfloat16: 1e-3, torch.float16: 1e-4, torch.float64: 1e-12}[dtype]
    check_backward(lambda m, r: loss_of(m, inputs(r).to(dtype)).backward(), build, tolerance=tolerance)
    driver = driver_for(build(), None, EveryStep())
    assert driver.layout.dtype == ("float64" if dtype == torch.float64 else "float32")


def test_parameters_of_mixed_dtypes_are_shared_together() -> None:
    def build() -> nn.Module:
        model = net()
        model[2].to(torch.bfloat16)
        model[3] = Cast(torch.float32)
        model[1] = Cast(torch.bfloat16)
        return model

    class Cast(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.dtype = dtype

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x).to(self.dtype)

    check_backward(lambda m, r: loss_of(m, inputs(r)).backward(), build, tolerance=1e-3)


def test_parameters_in_another_memory_format_are_shared() -> None:
    def build() -> nn.Module:
        conv = seeded(lambda: nn.Conv2d(3, 4, 3))
        return conv.to(memory_format=torch.channels_last)

    def backward(model: nn.Module, rank: int) -> None:
        x = here(torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(rank)))
        model(x.to(memory_format=torch.channels_last)).square().mean().backward()

    check_backward(backward, build)


def test_backward_of_an_autocast_forward_is_averaged() -> None:
    def backward(model: nn.Module, rank: int) -> None:
        with torch.autocast(pool_of_threads.DEVICE, torch.bfloat16):
            loss = loss_of(model, inputs(rank))
        loss.backward()

    check_backward(backward)


def test_backward_within_autocast_is_averaged() -> None:
    def backward(model: nn.Module, rank: int) -> None:
        with torch.autocast(pool_of_threads.DEVICE, torch.bfloat16):
            loss_of(model, inputs(rank)).backward()

    check_backward(backward)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_module_is_shared_under_the_names_of_the_plain_one(backend: str) -> None:
    plain = driver_for(net(), None, EveryStep())
    torch._dynamo.reset()
    model = net()
    compiled = torch.compile(model, backend=backend)
    place = Pool(2).places[0]
    pool = place.pool
    assert driver_for(compiled, None, EveryStep()).tensors == plain.tensors

    def worker(it: Place) -> Grads:
        mine = compiled if it.rank == 0 else net()  # one compiles: dynamo is not made for several threads
        share(it, mine)
        for step in range(3):
            mine.zero_grad()
            loss_of(mine, inputs(it.rank, step)).backward()
        return grads(mine)

    expected = reference(2, lambda m, rank: loss_of(m, inputs(rank, 2)).backward())
    for ours in pool.run(worker):
        assert_grads(ours, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_shared(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = net()[:4], nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(checkpoint(self.body, x, use_reentrant=reentrant))

    check_backward(
        lambda model, rank: loss_of(model, inputs(rank).requires_grad_()).backward(),
        lambda: seeded_module(Checkpointed),
    )


def seeded_module(build: Callable[[], nn.Module]) -> nn.Module:
    model = here(build())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(here(torch.randn(p.shape, generator=generator) / 3))
    return model


def test_a_layer_under_two_reentrant_checkpoints_comes_twice_and_is_shared_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(2):
                x = checkpoint(self.layer, x, use_reentrant=True)
            return self.head(x)

    check_backward(
        lambda model, rank: loss_of(model, inputs(rank).requires_grad_()).backward(),
        lambda: seeded_module(Twice),
    )


def test_a_backward_that_begins_inside_a_reentrant_checkpoint_is_refused_with_the_remedy() -> None:
    def worker(place: Place) -> None:
        model = net()
        share(place, model)
        x = checkpoint(model, inputs(0).requires_grad_(), use_reentrant=True)
        with pytest.raises(ModelError, match="pass use_reentrant=False"):
            x.square().mean().backward()

    Pool(1).run(worker)


def test_a_scaler_skips_the_same_steps_on_all_members_and_the_rest_is_averaged() -> None:
    def worker(place: Place) -> tuple[list[bool], list[torch.Tensor], float]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(pool_of_threads.DEVICE, init_scale=1024.0, growth_interval=2)
        share(place, model, optimizer, (scaler,))
        stepped = []
        for step in range(5):
            before = copy.deepcopy(model.state_dict())
            optimizer.zero_grad()
            overflow = float("inf") if (place.rank, step) == (1, 2) else 1.0
            scaler.scale(loss_of(model, inputs(place.rank, step)) * overflow).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            stepped.append(any(not torch.equal(p, before[name]) for name, p in model.state_dict().items()))
        assert place.rejections == [""] * 5
        return stepped, [p.detach() for p in model.parameters()], scaler.get_scale()

    first, second = Pool(2).run(worker)
    assert first[0] == second[0] == [True, True, False, True, True]
    assert all(map(torch.equal, first[1], second[1]))
    assert first[2] == second[2] == 2048.0


def test_a_scaler_cannot_go_with_an_encoding_which_would_have_to_carry_infinities() -> None:
    model, encode = net(), chain(Quantize(8))
    scaler, disabled = (torch.amp.GradScaler(pool_of_threads.DEVICE, enabled=it) for it in (True, False))
    with pytest.raises(StrategyError, match=r"EveryStep\(encode=chain.*bfloat16 without a scaler, or share"):
        driver_for(model, None, EveryStep(encode=encode), [scaler])
    driver_for(model, None, EveryStep(encode=encode), [disabled])
    driver_for(model, torch.optim.SGD(model.parameters()), LocalSGD(2, encode=encode), [scaler])


def test_without_a_scaler_a_contribution_that_is_not_finite_is_rejected_by_name() -> None:
    def worker(place: Place) -> Grads:
        model = net()
        share(place, model)
        for step in range(3):
            model.zero_grad()
            if (place.rank, step) == (0, 1):
                model[2].weight.register_hook(lambda grad: grad / 0 * 0)
            loss_of(model, inputs(place.rank, step)).backward()
            assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        expected = ["", "NaN in the gradient of 2.weight", "NaN in the gradient of 2.weight"]
        assert place.rejections == (expected if place.rank == 0 else [""] * 3)
        return grads(model)

    model = net()
    loss_of(model, inputs(1, 2)).backward()
    for ours in Pool(2).run(worker):
        assert_grads(ours, grads(model))


@pytest.mark.parametrize("why", ["NaN in the gradient of 2.weight", "1e6 is too great"])
def test_a_segment_that_cannot_be_encoded_is_not_announced_nor_is_any_after_it(why: str) -> None:
    def worker(place: Place) -> tuple[list[str], list[int]]:
        driver = driver_for(model := net(), None, EveryStep())
        object.__setattr__(driver.layout, "segment_bytes", 64)
        place.share(driver)
        if place.rank == 0 and why.startswith("NaN"):
            model[2].weight.register_hook(lambda grad: grad / 0 * 0)
        elif place.rank == 0:
            place.problems = {1: why}
        loss_of(model, inputs(place.rank)).backward()
        return place.rejections, place.early

    assert Pool(2).run(worker) == [([why], [0]), ([""], [*range(9)])]


def test_a_round_without_any_weight_leaves_gradients_of_zero() -> None:
    def worker(place: Place) -> Grads:
        model = net()
        share(place, model)
        place.weight = 0
        loss_of(model, inputs(place.rank)).backward()
        return grads(model)

    for ours in Pool(2).run(worker):
        assert all(g is not None and not g.any() for g in ours)


def test_a_member_of_weight_zero_gets_the_average_of_the_others() -> None:
    def worker(place: Place) -> Grads:
        model = net()
        share(place, model)
        place.weight = [0.0, 4.0, 4.0][place.rank]
        loss_of(model, inputs(place.rank)).backward()
        return grads(model)

    expected = reference(2, lambda model, rank: loss_of(model, inputs(rank + 1)).backward())
    for ours in Pool(3).run(worker):
        assert_grads(ours, expected)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_the_round_of_a_backward_that_failed_midway_is_rejected_and_the_next_counts_again() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(_: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(*_: object) -> torch.Tensor:
            raise RuntimeError("out of memory, say")

    def worker(place: Place) -> list[str]:
        driver = driver_for(model := net(), None, EveryStep())
        object.__setattr__(driver.layout, "segment_bytes", 64)
        place.share(driver)
        for step in range(4):
            model.zero_grad()
            if (place.rank, step) == (0, 2):
                with pytest.raises(RuntimeError, match="out of memory"):
                    mse_loss(model[2:](Fails.apply(model[:2](inputs(0)))), here(torch.zeros(4, 2))).backward()
                assert place.sent
                model.zero_grad()
            loss_of(model, inputs(place.rank, step)).backward()
        return place.rejections

    first, second = Pool(2).run(worker)
    assert first == ["", "", "an earlier backward() of this step ended in an error", ""]
    assert second == [""] * 4


def test_a_sparse_gradient_is_refused_by_name() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 4, sparse=True)

    with pytest.raises(ModelError, match=r"The gradient of words\.weight is sparse.*sparse=False"):
        driver_for(Words(), None, EveryStep())

    def worker(place: Place) -> None:
        model = here(nn.Linear(4, 4))
        share(place, model)
        words = here(torch.tensor([1, 2]))
        loss = torch.nn.functional.embedding(words, model.weight, sparse=True).sum()
        with pytest.raises(ModelError, match="The gradient of weight is sparse"):
            loss.backward()

    Pool(1).run(worker)


def test_an_optimizer_with_a_closure_steps_as_often_as_it_likes() -> None:
    def worker(place: Place) -> list[torch.Tensor]:
        model = net()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
        share(place, model, optimizer)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, inputs(0))
            loss.backward()
            return loss.detach()

        optimizer.step(closure)
        return [p.detach() for p in model.parameters()]

    first, second = Pool(2).run(worker)
    assert all(map(torch.equal, first, second))


def test_gradients_come_in_while_no_grad_mode_is_left_alone() -> None:
    def worker(place: Place) -> None:
        model = net()
        share(place, model)
        with contextlib.ExitStack():
            loss_of(model, inputs(0)).backward()
            assert torch.is_grad_enabled()
        assert all(p.requires_grad for p in model.parameters())
        assert not any(p.grad.requires_grad for p in model.parameters())

    Pool(1).run(worker)
