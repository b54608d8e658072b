"""Scripts that raise, in real processes: what that costs, and what is said of it."""

from pathlib import Path

import pytest
from invariants import assert_all, assert_I2_same_bits, assert_I3_exactly_once
from training import BATCH, CODED, STRATEGIES, Ran, Training

pytestmark = pytest.mark.faults

BAD = 77
AT_A_SAMPLE = f"if (ys == y[{BAD}]).any(): raise ValueError('sample {BAD} is bad')"


def left_out(ran: Ran) -> frozenset[int]:
    """The samples that the run names, by their own indices."""
    found = [range(*pair) for one in ran.summary["quarantine"] for pair in one["samples"]]
    return frozenset(index for indices in found for index in indices)


def tracebacks(training: Training) -> int:
    return sum(text.startswith("Traceback") for _, text in training.errors)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("strategy", [*STRATEGIES, CODED[1]])
def test_a_bad_sample_is_found_and_left_out_and_nothing_else_is_lost(
    tmp_path: Path, strategy: str, workers: int
) -> None:
    with Training(tmp_path, strategy, workers=workers, within=AT_A_SAMPLE) as training:
        ran = training.end()
    named = left_out(ran)
    assert BAD in named
    assert len(named) <= BATCH // 4, "halving leaves a quarter of the batch at most"
    assert_all(ran, named)
    assert len(ran.of_kind("suspect", "batch-failed", "bad-data")) == 3
    assert len({event.who for event in ran.of_kind("suspect", "batch-failed", "bad-data")}) >= min(workers, 2)
    assert len(ran.of_kind("quarantined")) == 1
    assert len(ran.of_kind("epoch")) == 2, "each epoch says that it ended without it"
    assert tracebacks(training) == 1
    (first, *others) = [news for news in training.news if "ValueError" in news]
    assert "as worker" not in first
    assert [news for news in others if "as worker" in news] or workers == 2


def test_a_pool_of_one_gets_past_a_bad_sample_with_a_checkpoint(tmp_path: Path) -> None:
    kept = {"checkpoint": str(tmp_path / "kept"), "checkpoint_every": "5versions"}
    with Training(tmp_path, STRATEGIES[1], workers=1, within=AT_A_SAMPLE, **kept) as training:
        training.until("a checkpoint", lambda: training.events("checkpoint"))
        ran = training.end()
    named = left_out(ran)
    assert BAD in named
    assert len(named) <= BATCH // 4
    assert_I3_exactly_once(ran, named)
    assert_I2_same_bits(ran)
    assert tracebacks(training) == 1


def test_an_error_of_one_worker_costs_no_sample_and_no_other_worker(tmp_path: Path) -> None:
    once = (
        "if os.environ['MANYHANDS_NAME'] == '1' and batches.progress > 0.1 and "
        "not (go.parent / 'once').exists(): (go.parent / 'once').touch(); raise MemoryError('out of memory')"
    )
    with Training(tmp_path, STRATEGIES[2], within=once) as training:
        ran = training.end()
    assert_all(ran)
    assert not left_out(ran)
    assert [event.who for event in ran.of_kind("left") if "MemoryError" in event.text] == ["1"]
    assert tracebacks(training) == 1


def test_a_worker_that_fails_at_whatever_it_reads_does_not_make_the_data_look_bad(tmp_path: Path) -> None:
    always = "if os.environ['MANYHANDS_NAME'] == '1': raise OSError('no such disk')"
    with Training(tmp_path, STRATEGIES[1], within=always, max_restarts=2) as training:
        training.until("the last failure", lambda: any("the others go on" in news for news in training.news))
        ran = training.end()
    assert not left_out(ran)
    assert_I3_exactly_once(ran)
    assert ran.outcome is not None
    assert (ran.outcome.code, ran.outcome.why) == (0, "finished without worker 1")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_bug_of_the_script_ends_the_run_with_its_traceback_and_quarantines_nothing(
    tmp_path: Path, strategy: str, workers: int
) -> None:
    with Training(tmp_path, strategy, workers=workers, within="no_such_name") as training:
        ran = training.end()
    assert ran.outcome is not None
    assert ran.outcome.code == 1
    assert ran.outcome.why.endswith("before anything was learned")
    assert tracebacks(training) == 1
    assert not left_out(ran)
    assert max(ran.outcome.restarts.values()) <= 1
