"""Updates shared a fragment at a time, while the next local steps go on (Streaming DiLoCo, arXiv 2501.18512).

The flat vector is cut into fragments that are shared in turn, each `every` steps after it last was. A
round may take `overlap` local steps; its result is then mixed into the parameters as they are by then.

Memory beyond the plain loop, in parameter bytes: the base, the state of the outer optimizer, and a
contribution and a combined vector of one fragment each.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from manyhands.core.messages import Tensor
from manyhands.errors import ModelError, ProtocolError
from manyhands.frameworks.companions import Companions
from manyhands.frameworks.updates import Surface, Updates
from manyhands.sharing.combine import Array, finite
from manyhands.sharing.layout import Layout
from manyhands.sharing.outer import SGD
from manyhands.sharing.strategy import Strategy
from manyhands.sharing.tree import Tree
from manyhands.worker.driving import Outcome, Rounds


class Streaming(Updates):
    """The driver of strategies that share fragments of updates, or let steps go on while they are shared.

    Which fragment a round shares follows from how many rounds there have been: the same on all members.
    """

    shares_buffer = False

    def __init__(self, surface: Surface, companions: Companions, strategy: Strategy) -> None:
        super().__init__(surface, companions, strategy)
        self._fragments = fragments(surface, strategy.fragments)
        self.trailing = self._pieces = len(self._fragments)
        self._turn = 0
        self._under_way: int | None = None  # local steps since the round was begun
        self._left_out = False  # what was learned up to its beginning does not count

    @cached_property
    def layout(self) -> Layout:
        """Of one fragment, as long as the longest."""
        longest = max(b - a for a, b in self._fragments)
        return Layout((Tensor("a fragment", (longest,), self._surface.layout.dtype.name),))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._surface.layout.tensors

    @cached_property
    def combined(self) -> Array:
        return self.allocate(self.layout.elements, self.layout.dtype)

    @property
    def _unshared(self) -> bool:
        return self._under_way is not None or super()._unshared

    def detach(self) -> None:
        rounds = self._rounds
        if rounds is not None and self._under_way is not None:
            outcome = rounds.outcome(wait=False)
            if outcome is not None and outcome.kind == "committed" and not self._turned_over():
                self._conclude(rounds, outcome)
        super().detach()

    def capture(self) -> Tree:
        state = super().capture()
        assert isinstance(state, dict)
        return {**state, "turn": self._turn}

    def install(self, tree: Tree) -> None:
        super().install(tree)
        assert isinstance(tree, dict)
        turn = tree["turn"]
        assert isinstance(turn, int)
        self._turn, self._under_way = turn, None

    def refill(self) -> None:
        raise ProtocolError("the contribution of a fragment is never written over")

    def _stepped(self) -> None:
        if self._under_way is not None:
            self._under_way += 1
        super()._stepped()

    def _due(self, rounds: Rounds) -> None:
        if self._under_way is not None and (rounds.hurry or self._under_way >= self._strategy.overlap):
            self._merge(rounds)
        if self._under_way is not None:
            return
        missed = self._take_missed(rounds)
        due = rounds.hurry or (missed is None and self._pace.due)
        if due and self._begin(rounds) is None and not self._strategy.overlap:
            self._merge(rounds)

    def _step_alone(self) -> None:
        if self._pace.due:
            self._write_update()
            self._adopt_fragment(self.contribution, counts=True)
            self._pace.restart()

    def _propose(self, rounds: Rounds) -> Outcome:
        missed = self._begin(rounds) if self._under_way is None else None
        return missed or self._merge(rounds)

    @property
    def _piece(self) -> tuple[int, int]:
        return self._fragments[self._turn]

    def _write_update(self) -> None:
        a, b = self._piece
        part = self.contribution[: b - a]
        with np.errstate(invalid="ignore", over="ignore"):
            self._surface.read(part, a, b)
            np.subtract(self._base[a:b], part, out=part)
        self.contribution[b - a :] = 0

    def _begin(self, rounds: Rounds) -> Outcome | None:
        """Propose the next fragment; or take up a round that closed before, if there is one."""
        if (missed := self._take_missed(rounds, claim=True)) is not None:
            return missed
        self._write_update()
        if self._owed:
            rounds.learned(earlier=True)
        rejected = self._announce(rounds, *self._piece)
        rounds.propose(b"", rejected)
        self._pace.restart()
        self._under_way, self._left_out = 0, bool(rejected)
        self._owed = max(self._owed - 1, 0)
        return None

    def _merge(self, rounds: Rounds) -> Outcome:
        outcome = rounds.outcome()
        assert outcome is not None
        self._conclude(rounds, outcome)
        return outcome

    def _conclude(self, rounds: Rounds, outcome: Outcome) -> None:
        if outcome.kind == "replaced":
            self._under_way = None
        super()._conclude(rounds, outcome)

    def _adopt(self, *, counts: bool) -> None:
        self._adopt_fragment(self.combined, counts=counts)

    def _adopt_fragment(self, update: Array, *, counts: bool) -> None:
        """Apply the combined update, and mix the fragment with what was learned meanwhile."""
        a, b = self._piece
        n = min(b, self._surface.parameters) - a
        base = self._base[a:b]
        moved = self._owed == self._pieces and not self._left_out  # since the round was begun
        if counts:
            states = [state[a : a + n] for state in self._outer_state]
            self._strategy.outer.apply(base[:n], update[:n], states)
            SGD(1.0).apply(base[n:], update[n : b - a], ())
        local = self.contribution[:n]
        if moved:
            self._surface.read(local, a, a + n)
        self._surface.write(base, a, b)
        if moved and finite(local):
            self._mix(local, base[:n])
            self._surface.write(local, a, a + n)
        self._turn = (self._turn + 1) % len(self._fragments)
        self._under_way, self._left_out = None, False

    def _mix(self, local: Array, base: Array) -> None:
        """α·local + (1 - α)·global, with α = `mix`."""
        np.subtract(local, base, out=local)
        np.multiply(local, local.dtype.type(self._strategy.mix), out=local)
        np.add(local, base, out=local)


def updates_driver(surface: Surface, companions: Companions, strategy: Strategy) -> Updates:
    """The driver of a strategy that shares updates."""
    whole = strategy.fragments == 1 and not strategy.overlap
    return (Updates if whole else Streaming)(surface, companions, strategy)


def fragments(surface: Surface, number: int) -> list[tuple[int, int]]:
    """[a, b) of each fragment of the flat vector: parameters in equal parts, all buffers with the last."""
    n = surface.parameters
    if number > n:
        raise ModelError(f"{n} parameters cannot be shared in {number} fragments; ask for {n} at most.")
    cuts = [n * i // number for i in range(number)]
    return list(zip(cuts, [*cuts[1:], surface.layout.elements], strict=True))
