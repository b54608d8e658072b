import dataclasses

import pytest

from manyhands.errors import StrategyError
from manyhands.sharing.encode.chain import ErrorFeedback, chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.encode.topk import TopK
from manyhands.sharing.outer import SGD, Nesterov
from manyhands.sharing.rhythm import Deadline, seconds
from manyhands.sharing.strategy import DiLoCo, EveryStep, LocalSGD, SparseLoCo, Strategy, StreamingDiLoCo


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (EveryStep(), "EveryStep()"),
        (LocalSGD(8), "LocalSGD(every=8)"),
        (DiLoCo(100), "DiLoCo(every=100, outer=Nesterov(0.8, 0.8))"),
        (DiLoCo(every=5, outer=SGD(0.5)), "DiLoCo(every=5, outer=SGD(0.5))"),
        (Strategy("updates", 3), "LocalSGD(every=3)"),
        (LocalSGD(seconds(30), close=Deadline(2.5)), "LocalSGD(every=seconds(30), close=Deadline(2.5))"),
        (DiLoCo(seconds(30)), "DiLoCo(every=seconds(30), outer=Nesterov(0.8, 0.8))"),
        (
            SparseLoCo(9, close=Deadline(2)),
            "SparseLoCo(every=9, density=0.0625, bits=2, decay=0.95, close=Deadline(2))",
        ),
        (SparseLoCo(9), "SparseLoCo(every=9, density=0.0625, bits=2, decay=0.95)"),
        (
            LocalSGD(9, encode=chain(TopK(0.1), Quantize(2))),
            "LocalSGD(every=9, encode=chain(TopK(0.1), Quantize(2)))",
        ),
    ],
)
def test_a_strategy_reads_as_it_was_written(strategy: Strategy, words: str) -> None:
    assert str(strategy) == words
    assert repr(strategy) == words


def test_a_part_alone_is_a_chain() -> None:
    assert EveryStep(encode=Quantize(8)) == EveryStep(encode=chain(Quantize(8)))
    assert StreamingDiLoCo(8, encode=ErrorFeedback()).encode == chain(ErrorFeedback())


def test_a_strategy_is_a_value() -> None:
    assert DiLoCo(100) == DiLoCo(100)
    assert hash(LocalSGD(3)) == hash(LocalSGD(3))
    assert LocalSGD(3) != LocalSGD(4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        EveryStep().every = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: LocalSGD(0), "every=0 must be a whole number of local steps, 1 or more"),
        (lambda: LocalSGD(-3), "every=-3 must be"),
        (lambda: DiLoCo(2.5), "every=2.5 must be"),  # type: ignore[arg-type]
        (lambda: LocalSGD(True), "every=True must be"),
        (lambda: DiLoCo(every="100"), "every='100' must be"),  # type: ignore[arg-type]
        (lambda: Strategy("weights"), "what='weights' is not known; share \"gradients\""),  # type: ignore[arg-type]
        (lambda: Strategy("gradients", 4), r"every=4 cannot go with gradients.*no_sync\(\), or use LocalSGD"),
        (
            lambda: Strategy("gradients", outer=Nesterov()),
            r"outer=Nesterov\(0.7, 0.9\) cannot go with gradients",
        ),
        (lambda: DiLoCo(3, outer=0.7), "outer=0.7 is no outer optimizer; use SGD"),  # type: ignore[arg-type]
        (lambda: Strategy("updates", combine=None), r"combine=None is not known; use Mean\(\)"),  # type: ignore[arg-type]
        (lambda: Strategy("updates", close=3), r"close=3 is not known; use All\(\) or"),  # type: ignore[arg-type]
        (lambda: Strategy("gradients", close=Deadline(1)), r"close=Deadline\(1\) cannot go with gradients"),
        (lambda: Strategy("gradients", seconds(3)), r"every=seconds\(3\) cannot go with gradients"),
        (lambda: seconds(0), r"seconds\(0\) must be a number of seconds above 0"),
        (lambda: Deadline("soon"), r"Deadline\('soon'\) must be a number"),  # type: ignore[arg-type]
        (lambda: Strategy("updates", encode=("x",)), "encode=.*is no encoding; use chain"),  # type: ignore[arg-type]
        (lambda: SGD(0), "lr=0 must be a number above 0"),
        (lambda: SGD(float("nan")), "lr=nan must be"),
        (lambda: Nesterov(-0.7), "Nesterov: lr=-0.7 must be"),
        (lambda: Nesterov(0.7, 1.0), "momentum=1.0 must be a number from 0 up to, not including, 1"),
        (lambda: Nesterov(0.7, "0.9"), "momentum='0.9' must be"),  # type: ignore[arg-type]
    ],
)
def test_a_nonsensical_value_is_named_with_its_remedy(build: object, words: str) -> None:
    with pytest.raises(StrategyError, match=words):
        build()  # type: ignore[operator]


def test_all_nonsensical_values_are_named_at_once() -> None:
    with pytest.raises(StrategyError, match=r"(?s)every=0.*outer=None.*encode=3"):
        Strategy("updates", 0, None, encode=3)  # type: ignore[arg-type]
