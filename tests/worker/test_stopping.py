"""When a pool has learned enough."""

from __future__ import annotations

from typing import Any

import pytest

from manyhands.errors import ConfigurationError
from manyhands.worker.stopping import DOUBTFUL, StopRule

NAN = float("nan")


def stopped_at(rule: StopRule, values: list[float]) -> int | None:
    """The version, from 1, at which the rule is met."""
    for version, value in enumerate(values, 1):
        rule.evaluate(version, {rule.metric: value})
        if rule.reason:
            return version
    return None


@pytest.mark.parametrize(
    ("metric", "arguments", "values", "version"),
    [
        ("accuracy", {"patience": 2}, [0.1, 0.5, 0.9, 0.8, 0.9], 5),
        ("val_loss", {"patience": 2}, [3.0, 2.0, 1.0, 2.0, 1.0], 5),
        ("accuracy", {"patience": 2}, [0.1, 0.2, 0.3, 0.4, 0.5], None),
        ("energy", {"patience": 2, "higher": True}, [1.0, 2.0, 3.0, 4.0], None),
        ("energy", {"patience": 2, "higher": False}, [1.0, 2.0, 3.0, 4.0], 3),
        ("energy", {"patience": 2, "above": 9.0}, [1.0, 2.0, 3.0, 9.0], 4),
        ("energy", {"above": 2.0, "below": -2.0}, [1.0, 0.0, -3.0], 3),
        ("loss", {"patience": 2}, [NAN, 3.0, 2.0, 1.0], None),
        ("loss", {"patience": 2}, [3.0, NAN, 2.0, NAN, NAN], 5),
        ("loss", {"patience": 2}, [NAN, NAN], 2),
        ("loss", {"patience": 2, "min_delta": 0.5}, [3.0, 2.9, 2.8], 3),
    ],
)
def test_a_rule_is_met_at_this_version(
    metric: str, arguments: dict[str, Any], values: list[float], version: int | None
) -> None:
    assert stopped_at(StopRule(metric, **arguments), values) == version


def test_a_metric_that_nobody_logs_is_doubted_once_and_those_that_are_logged_are_named() -> None:
    rule = StopRule("accurracy", above=0.9)
    doubts = []
    for version in range(1, 3 * DOUBTFUL):
        rule.evaluate(version, {"loss": 1.0, "accuracy": 0.5} if version % 2 else {})
        doubts.append(rule.doubt(("loss", "accuracy")))
    (doubt,) = filter(None, doubts)
    assert doubts.index(doubt) + 1 == 2 * DOUBTFUL - 1
    assert "stop_when('accurracy') has had nothing to go by in 20 versions" in doubt
    assert "called accuracy, loss; mend the name" in doubt


@pytest.mark.parametrize("value", [0.5, NAN])
def test_a_metric_that_is_logged_now_and_then_is_not_doubted(value: float) -> None:
    rule = StopRule("accuracy", above=0.9)
    rule.evaluate(1, {"accuracy": value})
    for version in range(2, 3 * DOUBTFUL):
        rule.evaluate(version, {"loss": 1.0})
    assert rule.doubt(("loss", "accuracy")) == ""


@pytest.mark.parametrize(
    ("metric", "arguments", "why"),
    [
        ("loss", {}, "no condition; give below="),
        ("loss", {"patience": 0}, "patience=0; give at least 1"),
        ("energy", {"patience": 2}, "cannot tell from the name .* higher=True or higher=False"),
        ("loss_score", {"patience": 2}, "cannot tell from the name"),
        ("loss", {"patience": 2, "below": 1.0, "higher": True}, "one call for each condition"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(metric: str, arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        StopRule(metric, **arguments)
