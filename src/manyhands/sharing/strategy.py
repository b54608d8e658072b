"""A strategy is a value: what is shared, how often, when a round closes, how it is combined and applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from manyhands.errors import StrategyError
from manyhands.sharing.combine import Mean
from manyhands.sharing.encode.chain import Encoding, ErrorFeedback, chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.encode.stage import Stage
from manyhands.sharing.encode.topk import TopK
from manyhands.sharing.outer import SGD, Nesterov, Outer
from manyhands.sharing.rhythm import ALL, All, Deadline, Seconds

PLAIN = Encoding()
"""Slices travel as they are."""

STEADY = Nesterov(0.8, 0.8)
"""The best of the outer steps tried every 30 local ones (docs/log.md); the papers' is Nesterov(0.7, 0.9)."""

Encode = Encoding | Stage | ErrorFeedback
"""What a preset takes: a chain, or one part alone."""

FOUR_BITS = chain(ErrorFeedback(), Quantize(4))


@dataclass(frozen=True)
class Strategy:
    """How the learning is shared.

    `what`: "gradients" (averaged before the script's own optimizer steps) or "updates" (what the
    parameters moved since the last version). `every`: local steps between two rounds, at most, or `seconds`.
    `outer`: what is done with the averaged update. `combine`: how contributions become one. `close`: how
    long a round waits for those who are slow. `encode`: how contributions travel, and what they are
    combined to; see `chain`. `fragments`: the pieces in which updates are shared in turn, each `every` steps
    after it last was. `overlap`: the local steps that a round may take; its result is mixed with the
    parameters as they are by then, `mix` of
    these and the rest of the result (α in arXiv 2501.18512). Raises `StrategyError`.
    """

    what: Literal["gradients", "updates"]
    every: int | Seconds = 1
    outer: Outer = SGD(1.0)  # noqa: RUF009
    combine: Mean = Mean()  # noqa: RUF009
    close: All | Deadline = ALL
    encode: Encoding = PLAIN
    fragments: int = 1
    overlap: int = 0
    mix: float = 0.25

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise StrategyError("\n".join(problems))

    def __repr__(self) -> str:
        given = [] if self.encode == PLAIN else [f"encode={self.encode}"]
        closes = [] if self.close == ALL else [f"close={self.close}"]
        if self.what == "gradients":
            return f"EveryStep({', '.join(given)})"
        given = [f"every={self.every}", *given, *closes]
        if self.fragments > 1 or self.overlap:
            pieces = f"fragments={self.fragments}, overlap={self.overlap}, mix={self.mix}"
            return f"StreamingDiLoCo({', '.join(given)}, outer={self.outer}, {pieces})"
        if self.outer == SGD(1.0) and (sparse := _sparse(self.encode)):
            return f"SparseLoCo({', '.join([given[0], sparse, *closes])})"
        if self.outer == SGD(1.0):
            return f"LocalSGD({', '.join(given)})"
        given.insert(1, f"outer={self.outer}")
        return f"DiLoCo({', '.join(given)})"


def EveryStep(*, encode: Encode = PLAIN) -> Strategy:  # noqa: N802
    """Average the gradients of every backward(): data parallel training, mirrored on all members.

    Weighted by the samples learned from; a second backward() on a batch is averaged like the first. Who
    has no data left repeats a batch that does not count, as often as others share something.
    """
    return Strategy("gradients", encode=_chained(encode))


def LocalSGD(  # noqa: N802
    every: int | Seconds, *, encode: Encode = PLAIN, close: All | Deadline = ALL
) -> Strategy:
    """Step alone, and average the parameters after `every` local steps, or `seconds` (arXiv 1805.09767).

    Nobody waits long for the slowest member: when all others have shared their `every` steps, it shares
    what it has done so far at its next step, weighted by the samples it learned from. So it does fewer
    than `every`, and the others read more of the data.
    """
    return Strategy("updates", every, encode=_chained(encode), close=close)


def DiLoCo(  # noqa: N802
    every: int | Seconds,
    outer: Outer = STEADY,
    *,
    encode: Encode = PLAIN,
    close: All | Deadline = ALL,
) -> Strategy:
    """Step alone, and give the averaged update to an outer optimizer (arXiv 2311.08105).

    The slowest member does fewer than `every` steps, as with `LocalSGD`.
    """
    return Strategy("updates", every, outer, encode=_chained(encode), close=close)


def StreamingDiLoCo(  # noqa: N802
    every: int | Seconds,
    outer: Outer = STEADY,
    *,
    fragments: int = 4,
    overlap: int = 1,
    mix: float = 0.25,
    encode: Encode = FOUR_BITS,
    close: All | Deadline = ALL,
) -> Strategy:
    """DiLoCo in fragments, one every `every / fragments` steps, in the background of `overlap` more steps.

    So the line carries little at a time, and nobody waits for it (arXiv 2501.18512, which mixes by halves).
    In 4 bits, with what they lose fed back, unless told otherwise.
    """
    return Strategy(
        "updates",
        every,
        outer,
        close=close,
        encode=_chained(encode),
        fragments=fragments,
        overlap=overlap,
        mix=mix,
    )


def SparseLoCo(  # noqa: N802
    every: int | Seconds,
    outer: Outer = SGD(1.0),  # noqa: B008
    *,
    density: float = 1 / 16,
    bits: int = 2,
    decay: float = 0.95,
    close: All | Deadline = ALL,
) -> Strategy:
    """DiLoCo that shares the largest elements of updates alone, in a few bits (arXiv 2508.15706).

    `density`: which part of the elements; what is left out is fed back, times `decay`. The paper's 1/64 wants
    a multiple of 64 rounds: in fewer most elements are hardly sent.
    """
    encode = chain(ErrorFeedback(decay), TopK(density), Quantize(bits))  # type: ignore[arg-type]
    return Strategy("updates", every, outer, encode=encode, close=close)


def _chained(encode: Encode) -> Encoding:
    return chain(encode) if isinstance(encode, Stage | ErrorFeedback) else encode


def _sparse(encode: Encoding) -> str:
    """The arguments of `SparseLoCo` that make this encoding; "" for any other."""
    match encode.feedback, encode.stages:
        case ErrorFeedback(decay), (TopK(density), Quantize(bits)):
            known = chain(ErrorFeedback(decay), TopK(density), Quantize(bits))
            return f"density={density}, bits={bits}, decay={decay}" if encode == known else ""
    return ""


def _problems(strategy: Strategy) -> list[str]:
    """Everything that makes no sense, all at once: field, value, remedy."""
    what, every, outer = strategy.what, strategy.every, strategy.outer
    problems = []
    if what not in ("gradients", "updates"):
        problems.append(f'Strategy: what={what!r} is not known; share "gradients" or "updates"')
    if not isinstance(every, Seconds) and not _counts(every):
        problems.append(
            f"Strategy: every={every!r} must be a whole number of local steps, 1 or more, or seconds(...)"
        )
    elif what == "gradients" and every != 1:
        problems.append(
            f"Strategy: every={every} cannot go with gradients, which are shared at each step; accumulate "
            f"under shared.no_sync(), or use LocalSGD(every={every})"
        )
    if not isinstance(outer, (SGD, Nesterov)):
        problems.append(
            f"Strategy: outer={outer!r} is no outer optimizer; use SGD(lr) or Nesterov(lr, momentum)"
        )
    elif what == "gradients" and outer != SGD(1.0):
        problems.append(
            f"Strategy: outer={outer!r} cannot go with gradients, which your own optimizer applies; leave it "
            f"out, or use DiLoCo(every=100, outer={outer!r})"
        )
    if not isinstance(strategy.combine, Mean):
        problems.append(f"Strategy: combine={strategy.combine!r} is not known; use Mean()")
    if not isinstance(strategy.close, All | Deadline):
        problems.append(f"Strategy: close={strategy.close!r} is not known; use All() or Deadline(seconds)")
    elif what == "gradients" and strategy.close != ALL:
        problems.append(
            f"Strategy: close={strategy.close!r} cannot go with gradients, which are those of one step on "
            "the same parameters; leave it out, or share updates, as in LocalSGD(every=1)"
        )
    problems += _fragment_problems(strategy)
    if not isinstance(strategy.encode, Encoding):
        problems.append(
            f"Strategy: encode={strategy.encode!r} is no encoding; use chain(...), as in "
            "chain(ErrorFeedback(), Quantize(4))"
        )
    return problems


def _fragment_problems(strategy: Strategy) -> list[str]:
    fragments, overlap, every, mix = strategy.fragments, strategy.overlap, strategy.every, strategy.mix
    problems = []
    for name, value, least in (("fragments", fragments, 1), ("overlap", overlap, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(f"Strategy: {name}={value!r} must be a whole number, {least} or more")
    if isinstance(mix, bool) or not isinstance(mix, (int, float)) or not 0 <= mix < 1:
        problems.append(f"Strategy: mix={mix!r} must be a number from 0 to below 1; 0.25 is usual")
    if problems:
        return problems
    if strategy.what == "gradients" and (fragments > 1 or overlap):
        problems.append(
            "Strategy: gradients are shared during backward(), all of them; leave out fragments and overlap"
        )
    elif isinstance(every, Seconds) or not _counts(every):
        return problems
    elif fragments > every:
        problems.append(f"Strategy: fragments={fragments} cannot take turns within every={every} steps")
    elif overlap and overlap >= -(-every // fragments):
        problems.append(
            f"Strategy: overlap={overlap} must be below every/fragments, {-(-every // fragments)} steps: the "
            f"next round begins then; give every={overlap * fragments + 1} or more, or fewer fragments"
        )
    return problems


def _counts(every: object) -> bool:
    """It is a number of steps."""
    return isinstance(every, int) and not isinstance(every, bool) and every >= 1
