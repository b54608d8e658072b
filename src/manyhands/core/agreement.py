"""What all workers of a run have in common: its name, the software, the model, and how that is shared."""

from __future__ import annotations

from manyhands._version import __version__
from manyhands.core.decisions import Action, Close, Note, Send
from manyhands.core.messages import Hello, Ready, Refuse, Tensor


def of_another_run(hello: Hello, run: str) -> str:
    """Why this worker is of no use here; "" if it may be."""
    if hello.run in ("", run):
        return ""
    return f"this hub serves run {run}, not {hello.run}: unset MANYHANDS_RUN"


def of_other_software(hello: Hello) -> str:
    """How it differs, and what to do about it; "" if it does not."""
    if hello.software == __version__:
        return ""
    return (
        f"worker {hello.name} runs manyhands {hello.software}, the hub runs {__version__}: "
        f"install manyhands=={__version__} there"
    )


def difference(ready: Ready, tensors: tuple[Tensor, ...], strategy: str, others: str = "the others") -> str:
    """How what a worker shares differs from what the `others` do; "" if it does not."""
    if ready.strategy != strategy:
        return f"shares with {ready.strategy}, {others} with {strategy}: give every worker the same strategy"
    for theirs, known in zip(ready.tensors, tensors, strict=False):
        if theirs != known:
            return (
                f"has {theirs.name} {theirs.shape} {theirs.dtype}, {others} "
                f"{known.name} {known.shape} {known.dtype}: build the same model on every worker"
            )
    if len(ready.tensors) != len(tensors):
        counts = f"{len(ready.tensors)} tensors, {others} {len(tensors)}"
        return f"shares {counts}: build the same one on every worker"
    return ""


def refusal(incarnation: str, name: str, kind: str, why: str) -> list[Action]:
    """Tell a worker and the people why it cannot take part; `kind` is the error that its script gets."""
    return [Note("refused", name, why), Send(incarnation, Refuse(kind, why)), Close(incarnation, why)]
