"""Where copies between model and host come late and out of order, everything is as without them."""

from __future__ import annotations

import logging
import mmap
from contextlib import nullcontext

import numpy as np
import pytest
import test_as_with_ddp
import test_buffers
import test_every_step
import test_state_of_a_joiner
import test_streaming
import test_updates
import torch
from late_copies import Late
from pool_of_threads import Alone, Place, Pool
from test_as_with_ddp import assert_grads, grads, inputs, loss_of, net

from manyhands.errors import MachineError
from manyhands.frameworks.torch import surface
from manyhands.frameworks.torch.cuda import SideStream
from manyhands.frameworks.torch.staging import Staging
from manyhands.sharing.strategy import DiLoCo, EveryStep, LocalSGD
from manyhands.worker.driving import driver_for


@pytest.fixture(autouse=True)
def sides(monkeypatch: pytest.MonkeyPatch) -> list[Late]:
    """What copies for each driver, in the order in which they were made."""
    made: list[Late] = []

    def staging_for(_: object) -> Staging:
        made.append(Late())
        return Staging({torch.device("cpu"): made[-1]})

    monkeypatch.setattr(surface, "staging_for", staging_for)
    monkeypatch.setattr("manyhands.frameworks.torch.staging.LOOK_SECONDS", 0)
    return made


SAME = (
    test_every_step.test_the_averaging_equation,
    test_every_step.test_n_workers_equal_one_process_with_the_n_fold_batch,
    test_every_step.test_one_worker_with_the_pool_changes_not_a_bit,
    test_every_step.test_after_detach_nothing_is_shared_and_the_model_goes_on,
    test_as_with_ddp.test_accumulation_under_no_sync_shares_the_sum_with_the_next_backward,
    test_as_with_ddp.test_zero_grad_may_keep_or_drop_the_gradients,
    test_as_with_ddp.test_clipping_after_backward_clips_the_average,
    test_as_with_ddp.test_several_backwards_add_up_to_the_sum_of_the_averages,
    test_as_with_ddp.test_backward_for_some_inputs_only_shares_those,
    test_as_with_ddp.test_a_parameter_unused_here_gets_the_others_average_and_one_unused_everywhere_none,
    test_as_with_ddp.test_parameters_of_other_dtypes_are_averaged_in_the_vector_and_stay_what_they_are,
    test_as_with_ddp.test_parameters_in_another_memory_format_are_shared,
    test_as_with_ddp.test_a_layer_under_two_reentrant_checkpoints_comes_twice_and_is_shared_once,
    test_as_with_ddp.test_a_scaler_skips_the_same_steps_on_all_members_and_the_rest_is_averaged,
    test_as_with_ddp.test_without_a_scaler_a_contribution_that_is_not_finite_is_rejected_by_name,
    test_as_with_ddp.test_a_round_without_any_weight_leaves_gradients_of_zero,
    test_buffers.test_statistics_move_by_the_mean_of_the_members_and_counters_stay_whole,
    test_buffers.test_after_several_rounds_all_members_hold_the_same_buffers,
    test_buffers.test_constants_of_any_kind_keep_their_bits,
    test_buffers.test_a_rejected_worker_takes_the_others_statistics,
    test_updates.test_several_rounds_are_those_of_the_reference,
    test_updates.test_alone_diloco_does_the_outer_step_with_its_own_update,
    test_updates.test_an_update_that_is_not_finite_is_rejected_by_name_and_its_worker_goes_on_with_the_others,
    test_updates.test_parameters_of_other_dtypes_hold_exactly_the_version,
    test_updates.test_parameters_in_another_memory_format_hold_exactly_the_version,
    test_streaming.test_a_module_with_buffers_ends_the_same_everywhere,
    test_state_of_a_joiner.test_a_joiner_at_the_head_of_its_loop_goes_on_bit_for_bit_as_its_donor,
    test_state_of_a_joiner.test_who_is_replaced_heals_at_its_step_and_goes_on_bit_for_bit_as_its_donor,
    test_state_of_a_joiner.test_while_out_of_the_pool_gradients_stay_zero_and_nothing_is_announced,
)
globals().update({test.__name__: test for test in SAME})


def shared(place: Place, segment_bytes: int = 64) -> torch.nn.Module:
    """A model whose gradients are shared in segments of so many bytes."""
    driver = driver_for(model := net(), None, EveryStep())
    object.__setattr__(driver.layout, "segment_bytes", segment_bytes)
    place.share(driver)
    return model


def test_a_segment_is_announced_when_it_has_landed_and_not_before(sides: list[Late]) -> None:
    def worker(place: Place) -> None:
        model, seen = shared(place), []
        loss_of(model, inputs(0)).backward()
        (side,), segments = sides, len(place.driver.layout.segments)
        place.early.clear()

        def wake(_: torch.Tensor) -> None:
            side.sleeps = False

        def look(_: torch.Tensor) -> None:
            seen.append(len(place.early))
            side.join()

        side.sleeps = True
        for layer in (model[2].bias, model[0].bias):
            layer.register_hook(look)
        model[0].weight.register_post_accumulate_grad_hook(wake)
        model.zero_grad()
        loss_of(model, inputs(1)).backward()
        asleep, landed = seen
        assert asleep == 0  # though the copies of the last layer have been asked for
        assert 0 < landed < segments
        assert place.early == list(range(segments))

    Pool(1).run(worker)


def fail_on_the_way(model: torch.nn.Module, side: Late) -> None:
    """A backward() that ends in an error, with all its copies still to come."""

    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("out of memory, say")

    side.sleeps = True
    failing = model[0].weight.register_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        loss_of(model, inputs(1) * 1e9).backward()
    failing.remove()
    side.sleeps = False
    model.zero_grad()


@pytest.mark.parametrize(
    ("segment_bytes", "why"), [(4096, ""), (64, "an earlier backward() of this step ended in an error")]
)
def test_what_was_on_its_way_when_backward_failed_harms_no_later_one(
    segment_bytes: int, why: str, sides: list[Late]
) -> None:
    def worker(place: Place) -> list[torch.Tensor | None]:
        model = shared(place, segment_bytes)
        loss_of(model, inputs(0)).backward()
        fail_on_the_way(model, sides[0])
        for step in (2, 3):
            model.zero_grad()
            model[4](inputs(step).repeat(1, 2)).sum().backward()
            assert why or not place.proposed[0][18:].any()  # of the other layers
        assert place.rejections == ["", why, ""]
        return grads(model)

    (ours,) = Pool(1).run(worker)
    model = net()
    model[4](inputs(3).repeat(1, 2)).sum().backward()
    assert_grads(ours, grads(model))


def test_memory_is_unlocked_when_what_was_on_its_way_has_come(sides: list[Late]) -> None:
    def worker(place: Place) -> None:
        model = shared(place)
        loss_of(model, inputs(0)).backward()
        fail_on_the_way(model, sides[0])
        place.driver.detach()

    Pool(1).run(worker)
    assert sides[0].locked == 0


def test_the_average_is_there_when_backward_returns(sides: list[Late]) -> None:
    def worker(place: Place) -> list[torch.Tensor | None]:
        place.adopted = lambda: None  # its digest would have waited
        model = shared(place)
        loss_of(model, inputs(0)).backward()
        return grads(model)

    (ours,) = Pool(1).run(worker)
    assert sides[0].done
    loss_of(model := net(), inputs(0)).backward()
    assert_grads(ours, grads(model))


def test_copies_that_do_not_come_are_named_after_a_while(
    sides: list[Late], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manyhands.frameworks.torch.staging.WAIT_SECONDS", 0.01)

    def worker(place: Place) -> None:
        model = shared(place)
        sides[0].sleeps = True
        with pytest.raises(MachineError, match="between the host and cpu have not been done in 0 s"):
            loss_of(model, inputs(0)).backward()
        assert not place.early

    Pool(1).run(worker)


@pytest.mark.parametrize("strategy", [EveryStep(), DiLoCo(1)], ids=str)
def test_memory_is_locked_while_it_is_copied_to_and_never_without_a_pool(
    strategy: object, sides: list[Late]
) -> None:
    place, model = Pool(1).places[0], net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    driver_for(model, optimizer, LocalSGD(1)).attach(Alone())
    driver = place.share(driver_for(model, optimizer, strategy))
    loss_of(model, inputs(0)).backward()
    optimizer.step()
    alone, side = sides
    assert (alone.locked, side.locked) == (0, 2 if strategy == EveryStep() else 1)
    driver.detach()
    assert side.locked == 0


class Runtime:
    """CUDA's functions to lock memory, which fail with an error where there is one."""

    success = 0

    def __init__(self, error: int) -> None:
        self.error, self.locked = error, dict[int, int]()

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        assert flags == 1
        assert address % mmap.PAGESIZE == 0
        if not self.error:
            self.locked[address] = nbytes
        return self.error

    def cudaHostUnregister(self, address: int) -> None:  # noqa: N802
        del self.locked[address]


def test_vectors_are_locked_in_pages_of_their_own_and_unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(0)
    locked = lock(np.zeros(1001, np.float32)[1:], runtime, monkeypatch)
    unlocked, unlock = locked
    assert len(unlocked) == 1000
    assert not unlocked.any()
    assert list(runtime.locked.values()) == [4000]
    again, unlock_again = lock(unlocked, runtime, monkeypatch)
    assert again is unlocked  # it has pages of its own already
    unlock()
    assert not runtime.locked
    del unlock_again


def test_where_memory_cannot_be_locked_a_warning_says_so_and_the_vector_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "manyhands"):
        vector, unlock = lock(np.zeros(3 << 18, np.float32), Runtime(2), monkeypatch)
    assert "CUDA cannot lock 3 MB of the host's memory (error 2)" in caplog.text
    vector[:] = 1
    unlock()


def lock(vector: np.ndarray, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, object]:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    return SideStream(torch.device("cpu")).lock(vector)
