"""Faults put into the protocol on purpose: each must break an invariant within a few schedules."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from manyhands.core.coordinator import Coordinator
from manyhands.core.digests import Digests
from manyhands.core.holding import Holding
from manyhands.core.ledger import Ledger, Pass
from manyhands.core.messages import Dataset, Span, Tensor, Version
from manyhands.core.rounds import Participant
from manyhands.core.versions import Versions
from manyhands.core.views import Views
from manyhands.sharing.encode.chain import ErrorFeedback, chain
from manyhands.sharing.encode.quantize import Quantize
from manyhands.sharing.layout import Layout
from manyhands.testing import faults
from manyhands.testing.plan import Violation
from manyhands.testing.simulation import Simulation, simulate
from manyhands.worker.coding import Coding, Made
from manyhands.worker.progress import Progress

SEEDS = 250
LAYOUT = Layout((Tensor("w", (100,), "float32"),))

Array = np.ndarray
Fault = Callable[[Simulation], None]
Edit = tuple[Callable[..., object], str, str]
"""A function of the package, what stands in it once, and what stands there instead."""


def mutate(monkeypatch: pytest.MonkeyPatch, edit: Edit) -> None:
    """Replace a method by itself with one place changed."""
    function, before, after = edit
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(before) == 1, f"{before!r} is not in {function.__qualname__} once: mend the mutation"
    module = sys.modules[function.__module__]
    names: dict[str, object] = {}
    exec(
        compile(f"from __future__ import annotations\n{source.replace(before, after)}", "mutation", "exec"),
        vars(module),
        names,
    )
    owner = getattr(module, function.__qualname__.partition(".")[0])
    monkeypatch.setattr(owner, function.__name__, names[function.__name__])


@dataclass(frozen=True)
class Mutation:
    """Edits that make one fault; `befalls`: only these faults of the world are drawn, if any are named."""

    name: str
    edits: tuple[Edit, ...]
    befalls: tuple[Fault, ...] = ()


MUTATIONS = [
    Mutation(
        "a member commits before all is staged",
        ((Participant._stage, "< self.segments * size", "< self.segments"),),
    ),
    Mutation(
        "slices are combined over another set than the one that is committed",
        ((Participant._reduce, " or arrived[rank][1] != subset_of(live)", ""),),
    ),
    Mutation(
        "a version is applied twice",
        (
            (
                Participant._commit,
                "[Commit(version, contributions, weight, own and weight > 0)]",
                "2 * [Commit(version, contributions, weight, own and weight > 0)]",
            ),
        ),
    ),
    Mutation(
        "messages of an older view pass the fence",
        ((Participant.verdict, "view < self.fence or view < current", "False"),),
        (faults.kill, faults.hang_up),
    ),
    Mutation(
        "the pool heals from an older donor",
        ((Views.decide, "best = max(", "best = min("),),
    ),
    Mutation(
        "a lease is never given back",
        (
            (
                Pass.release,
                "self.free.update(self.leases.pop(incarnation, Intervals()))",
                "self.leases.pop(incarnation, None)",
            ),
        ),
    ),
    Mutation(
        "a block is leased to two",
        ((Ledger._lease, "this.free.difference_update(pairs)", "pass"),),
    ),
    Mutation(
        "what a rejected contribution had read is forgotten",
        ((Holding.withdraw, "self.queue[:0] = self.proposed", "pass"),),
    ),
    Mutation(
        "a restarted hub does not wait for its members",
        ((Coordinator.restore, "hub._recovering = -1.0", "hub._recovering = None"),),
        (faults.restart_hub, faults.kill),
    ),
    Mutation(
        "a version is settled before every member holds it",
        ((Versions.settle, "min(", "max("),),
    ),
    Mutation(
        "a version that only the dead held is not undone",
        ((Ledger.undo, "self._tentative.pop(version, ())", "()"),),
    ),
    Mutation(
        "a member of an older view is taken for one of this",
        ((Coordinator._returned, "self.view.rank(worker.incarnation) is None", "False"),),
        (faults.divide, faults.hang_up, faults.sever_hub),
    ),
    Mutation(
        "a run that goes back to a checkpoint keeps the newer ledger",
        ((Views.go_back, "self._ledger.restore(datasets, kept.holdings)", "pass"),),
    ),
    Mutation(
        "other bits are evicted by nobody",
        ((Digests.report, "if reports[member] != right", "if False"),),
    ),
    Mutation(
        "what a member has not heard acknowledged is not learned from it",
        (
            (Coordinator._standing, "standing.unacknowledged", "()"),
            (Coordinator._returned, "standing.unacknowledged", "()"),
            (Versions.untold, "<= self.newest.number", ">= 0"),
        ),
    ),
    Mutation(
        "a hub that takes over has the ledger of whoever comes first",
        (
            (
                Views.decide,
                "change.standings[sources[0]].holdings",
                "next(iter(change.standings.values())).holdings",
            ),
        ),
        (faults.replace_hub, faults.kill),
    ),
    Mutation(
        "two hubs do not hear of each other",
        (
            (
                Coordinator._compared,
                "return self._step_down(followed.incarnation, followed.name)",
                "return []",
            ),
            (Coordinator.serves, "else self.epoch", "else 1"),
        ),
        (faults.divide, faults.sever_hub),
    ),
    Mutation(
        "a hub does not ask of versions that no member can tell it of any more",
        ((Versions.untold, "<= self.newest.number", ">= 0"),),
        (faults.restart_hub, faults.sever_hub),
    ),
    Mutation(
        "samples are left out at which no script has failed",
        ((Ledger.bar, "(dataset, epoch, pairs,", "(dataset, epoch, [(0, 9)],"),),
    ),
    Mutation(
        "what is quarantined is committed by two",
        (
            (
                Ledger.skip,
                "self._lease(",
                "tuple(Span(dataset, epoch, *pair) for pair in this.barred) or self._lease(",
            ),
        ),
    ),
    Mutation(
        "what a worker that abstains has taken counts with the version that it missed",
        ((Holding.commit, "self.proposed = []", "self.proposed, self.taken = [], []"),),
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "_"))
def test_an_invariant_breaks_when(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    for edit in mutation.edits:
        mutate(monkeypatch, edit)
    if mutation.befalls:
        monkeypatch.setattr(faults, "FAULTS", dict.fromkeys(mutation.befalls, 1))
    broken = next((found for seed in range(SEEDS) if (found := what_breaks(seed))), None)
    assert isinstance(broken, Violation), f"{broken!r} in {SEEDS} schedules, and no invariant"


def what_breaks(seed: int) -> BaseException | None:
    try:
        simulate(seed)
    except Violation as broken:
        return broken.__cause__
    return None


def residual_after_an_abort() -> bool:
    """Does a contribution after an aborted round decode as if that round had not been?"""
    vector = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    made, untouched = (Coding(chain(ErrorFeedback(), Quantize(4)), LAYOUT) for _ in range(2))

    def encoded(one: Coding, base: int, values: Array) -> list[int]:
        return list(one.contribution(0, 0, Made(1, base, 0b1), values, one.lost(base, 0, 100)))

    for one in (made, untouched):
        one.join([(0, 100)])
        encoded(one, 0, vector)
        one.commit(Made(1, 0, 0b11), counted=True)
    encoded(made, 1, 3 * vector)
    made.join([(0, 100)])
    return encoded(made, 2, vector) == encoded(untouched, 2, vector)


def test_the_residual_shows_when_it_is_kept_after_an_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    assert residual_after_an_abort()
    mutate(monkeypatch, (Coding.join, "lost.keep(encoded)", "lost.commit()"))
    assert not residual_after_an_abort()


def committed_of_a_rejected_contribution() -> int:
    progress = Progress()
    progress.declare(Dataset(0, 10, 1, 2, "dynamic", 0))
    progress.holdings[0].leased([Span(0, 0, 0, 10)])
    progress.take(0, 4)
    progress.learned()
    progress.commit(Version(1, 1), [progress.propose("a", b"", "it has a NaN")])
    return progress.holdings[0].total_committed


def test_the_count_shows_when_the_samples_of_a_rejected_contribution_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert committed_of_a_rejected_contribution() == 0
    mutate(monkeypatch, (Progress.propose, "if rejected:", "if False:"))
    assert committed_of_a_rejected_contribution() == 4
