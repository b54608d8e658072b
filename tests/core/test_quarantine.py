"""What scripts fail at again and again is left out, named, and settled all the same."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from test_coordinator import hello, notes, pool

from manyhands.core.coordinator import Coordinator
from manyhands.core.decisions import Action, Note, Received, Send
from manyhands.core.holding import Holding
from manyhands.core.ledger import Ledger
from manyhands.core.messages import (
    START,
    Applied,
    Asked,
    Beat,
    Contribution,
    Dataset,
    Entered,
    Leased,
    Left,
    Span,
    Standing,
    Version,
)
from manyhands.core.shuffle import Shuffle
from manyhands.core.suspects import FAILURES, Suspects

LENGTH, BATCH, EPOCHS = 40, 4, 2
SPEC = Dataset(0, LENGTH, BATCH, EPOCHS, "dynamic", 0)
NAMES = ("a", "b", "c")


class Pool:
    """Workers by name, each start of them an incarnation, that fail at the bad samples they read."""

    def __init__(self, bad: set[int]) -> None:
        self.ledger = Ledger()
        self.ledger.declare(SPEC)
        self.bad, self.failures, self.version = bad, 0, 0
        self.starts = dict.fromkeys(NAMES, 0)
        self.learned: Counter[tuple[int, int]] = Counter()
        self.skipped: Counter[tuple[int, int]] = Counter()
        self.made: list[tuple[Version, Contribution]] = []

    def turn(self, name: str) -> None:
        """One worker leases, reads a batch, and shares what it learned; or fails, and starts anew."""
        me, ledger = f"{name}{self.starts[name]}", self.ledger
        epoch = ledger.epoch(0)
        spans = ledger.grant(me, Asked(0, epoch, BATCH), rank=0, size=1)
        if not spans and (suspect := ledger.suspect(me, 0, epoch)):
            spans = ledger.try_again(me, ledger.unfailed(name, suspect) or suspect)
        skipped = ledger.skip(me, 0, epoch)
        if any(sample in self.bad for span in spans for sample in indices(span)):
            self.failures += 1
            ledger.failed(name, spans, "it raised ValueError")
            ledger.bar(ledger.proven(spans))
            self.die(name)
        elif spans or skipped:
            self.version += 1
            self.made.append((Version(self.version, 1), Contribution(me, 1.0, spans, skipped=skipped)))
            ledger.commit(*self._newest())
            self._count(+1)

    def undo(self) -> None:
        """The newest version is undone: who made it is dead."""
        if self.made:
            self.ledger.undo(self.made[-1][0], ())
            self._count(-1)
            self.made.pop()

    def die(self, name: str) -> None:
        self.ledger.release(f"{name}{self.starts[name]}")
        self.starts[name] += 1

    def restart_hub(self) -> None:
        saved, self.ledger = self.ledger.save(), Ledger()
        self.ledger.load(saved)

    def _newest(self) -> tuple[Version, tuple[Contribution, ...]]:
        version, contribution = self.made[-1]
        return version, (contribution,)

    def _count(self, sign: int) -> None:
        contribution = self.made[-1][1]
        for spans, counter in ((contribution.spans, self.learned), (contribution.skipped, self.skipped)):
            for span in spans:
                for position in range(span.start, span.stop):
                    counter[span.epoch, position] += sign


def indices(span: Span) -> list[int]:
    return [int(i) for i in Shuffle(LENGTH, 0, span.epoch).indices(span.start, span.stop)]


deeds = st.lists(
    st.tuples(st.sampled_from(["turn", "turn", "turn", "die", "undo", "hub"]), st.sampled_from(NAMES)),
    max_size=60,
)


@given(st.sets(st.integers(0, LENGTH - 1), max_size=2), deeds)
def test_every_position_is_learned_from_exactly_once_or_named_as_quarantined(
    bad: set[int], deeds: list[tuple[str, str]]
) -> None:
    pool = Pool(bad)
    for deed, name in deeds:
        {
            "turn": pool.turn,
            "die": pool.die,
            "undo": lambda _: pool.undo(),
            "hub": lambda _: pool.restart_hub(),
        }[deed](name)
    for turn in range(2000):
        if pool.ledger.done:
            break
        pool.turn(NAMES[turn % len(NAMES)])
    every = {(epoch, position) for epoch in range(EPOCHS) for position in range(LENGTH)}
    assert +(pool.learned + pool.skipped) == Counter(every)
    left_out = {i for q in pool.ledger.quarantine for a, b in q.samples for i in range(a, b)}
    assert bad <= left_out
    progress = pool.ledger.progress(0)
    assert (progress.twice, progress.total_committed) == (0, LENGTH * EPOCHS)
    assert progress.skipped == sum((+pool.skipped).values())


@given(st.integers(0, LENGTH - 1))
def test_one_bad_sample_costs_three_starts_and_is_found_within_its_batch(sample: int) -> None:
    pool = Pool({sample})
    for turn in range(500):
        pool.turn(NAMES[turn % len(NAMES)])
    assert pool.failures == FAILURES
    (found,) = pool.ledger.quarantine
    assert found.samples == ((sample, sample + 1),)
    assert str(found) == f"sample {sample} of data set 0"


def test_failures_count_by_position_whatever_the_batches_were() -> None:
    suspects = Suspects()
    for name, pair in (("a", (0, 8)), ("b", (4, 12)), ("c", (6, 7))):
        suspects.failed(name, [pair], "")
    assert suspects.often(2).pairs() == [(4, 8)]
    assert suspects.often(3).pairs() == [(6, 7)]


def test_where_nothing_of_an_epoch_was_learned_nothing_of_it_is_quarantined() -> None:
    ledger = Ledger()
    ledger.declare(SPEC)
    for name in NAMES:
        ledger.failed(name, [Span(0, 0, 0, 4)], "it raised NameError")
    assert not ledger.proven([Span(0, 0, 0, 4)])


def test_where_much_of_an_epoch_fails_it_is_the_script() -> None:
    ledger = Ledger()
    ledger.declare(SPEC)
    ledger.commit(Version(1, 1), (Contribution("a", 4.0, (Span(0, 0, 36, 40),)),))
    for start in range(0, 12, 4):
        for name in NAMES:
            ledger.failed(name, [Span(0, 0, start, start + 4)], "it raised NameError")
    assert not ledger.proven([Span(0, 0, 0, 4)])


def test_what_a_stranger_says_to_have_failed_at_is_not_believed() -> None:
    ledger = Ledger()
    ledger.declare(SPEC)
    assert (
        ledger.failed("a", [Span(0, 0, -1, 4), Span(7, 0, 0, 4), Span(0, 9, 0, 4), Span(0, 0, 4, 4)], "") == 0
    )


def test_a_checkpoint_knows_what_is_quarantined_and_how_often_it_was_left_out() -> None:
    holding = Holding(SPEC)
    holding.leased((), (Span(0, 0, 3, 4),))
    skipped = tuple(holding.to_skip)
    holding.commit([Contribution("a", 0.0, (Span(0, 0, 0, 3),), skipped=skipped)])
    ledger = Ledger()
    ledger.restore((SPEC,), [holding.save()])
    (sample,) = indices(Span(0, 0, 3, 4))
    assert ledger.quarantine[0].samples == ((sample, sample + 1),)
    assert ledger.progress(0).skipped == 1
    other = Holding(SPEC)
    other.load(holding.save())
    assert other.save() == holding.save()
    assert (holding.to_skip, other.learned(9)) == ([], (Span(0, 0, 0, 3),))
    later = int(Shuffle(LENGTH, 0, 1).positions(sample, sample + 1)[0])
    ledger.commit(Version(1, 1), (Contribution("a", 1.0, (Span(0, 0, 4, LENGTH),)),))
    assert ledger.skip("a", 0, 1) == (Span(0, 1, later, later + 1),)


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("length", [1, 2, 7, 100, 9000])
def test_a_sample_is_found_again_in_every_order(seed: int | None, length: int) -> None:
    order = Shuffle(length, seed, 3)
    assert order.positions(0, length)[order.indices(0, length)].tolist() == list(range(length))


def test_what_is_skipped_under_a_hub_that_took_over_is_left_out_of_later_epochs_too() -> None:
    """The hub before had leased it to be skipped, and died before that was committed."""
    ledger = Ledger()
    ledger.declare(SPEC)
    bad = Span(0, 0, 3, 4)
    ledger.hold("a", [bad])
    rest = (Span(0, 0, 0, 3), Span(0, 0, 4, LENGTH))
    ledger.commit(Version(1, 1), (Contribution("a", LENGTH - 1.0, rest, skipped=(bad,)),))
    assert ledger.epoch(0) == 1
    (sample,) = ledger.samples(0, 0, [(3, 4)])
    given = ledger.grant("a", Asked(0, 1, LENGTH), rank=0, size=1)
    given += ledger.grant("a", Asked(0, 1, LENGTH), rank=0, size=1)
    read = [pair for span in given for pair in ledger.samples(0, 1, [(span.start, span.stop)])]
    assert not any(a <= sample[0] < b for a, b in read)
    assert ledger.quarantine


def test_what_is_quarantined_while_an_epoch_ends_is_left_out_of_the_next_one_that_has_begun() -> None:
    """Its last version is undone: what that committed is read anew, beside what was leased since."""
    ledger, bad = Ledger(), Span(0, 0, 3, 4)
    ledger.declare(SPEC)
    ledger.commit(Version(1, 1), (Contribution("a", LENGTH / 2, (Span(0, 0, LENGTH // 2, LENGTH),)),))
    ledger.commit(Version(2, 1), (Contribution("b", LENGTH / 2, (Span(0, 0, 0, LENGTH // 2),)),))
    assert ledger.grant("a", Asked(0, 1, 1), rank=0, size=1)
    ledger.undo(Version(2, 1), ["a"])
    for name in NAMES:
        ledger.failed(name, [bad], "it raised ValueError")
    ledger.bar(ledger.proven([bad]))
    assert ledger.skip("a", 0, 0) == (bad,)
    ledger.commit(
        Version(2, 2),
        (Contribution("a", 1.0, (Span(0, 0, 0, 3), Span(0, 0, 4, LENGTH // 2)), skipped=(bad,)),),
    )
    (sample,) = ledger.quarantine[0].samples
    there = int(Shuffle(LENGTH, 0, 1).positions(*sample)[0])
    assert ledger.skip("a", 0, 1) == (Span(0, 1, there, there + 1),)
    assert len(ledger.quarantine) == 1


# --- the hub -------------------------------------------------------------------------------------------


def failing(hub: Coordinator, name: str, batch: Span, now: float, read: int = 1) -> list[Action]:
    hub.ledger.hold(name, [batch])
    hub.handle(Received(name, Beat(read=read)), now)
    return hub.handle(Received(name, Left(False, "it raised ValueError: no", batch=(batch,))), now)


def asking(hub: Coordinator, name: str, now: float) -> tuple[Leased, list[Action]]:
    actions = hub.handle(Received(name, Asked(0, 0, 100)), now)
    (leased,) = [a.message for a in actions if isinstance(a, Send) and isinstance(a.message, Leased)]
    return leased, actions


def changed(hub: Coordinator, *names: str, now: float) -> None:
    """The survivors stand where they are, and enter the next view."""
    number = hub._views.change.number if hub._views.change is not None else 0
    for name in names:
        hub.handle(Received(name, Standing(number, hub.version, hub.version.number)), now)
    for name in names:
        hub.handle(Received(name, Entered(number, hub.version)), now)


def all_but(hub: Coordinator, span: Span, by: str, now: float) -> None:
    """All else of the epoch is committed."""
    rest = tuple(Span(0, 0, a, b) for a, b in ((3, span.start), (span.stop, 20)) if a < b)
    hub.handle(Received(by, Applied(Version(2, 2), "d", (Contribution(by, 1.0, rest),))), now)


def test_what_one_has_failed_at_goes_to_another_worker_when_nothing_else_is_left() -> None:
    hub, bad = pool(3), Span(0, 0, 3, 5)
    hub.ledger.datasets[0] = replace(hub.ledger.datasets[0], batch_size=2)
    failing(hub, "2", bad, 1.0)
    changed(hub, "0", "1", now=1.1)
    assert bad.start not in [at for s in asking(hub, "0", 1.2)[0].spans for at in range(s.start, s.stop)]
    all_but(hub, bad, "0", 1.3)
    leased, _ = asking(hub, "0", 1.4)
    assert leased.spans == (Span(0, 0, 3, 4),), "it comes half by half"


def test_where_all_others_have_failed_at_it_too_or_do_not_come_it_goes_to_anyone() -> None:
    hub, bad = pool(3, lease=10.0), Span(0, 0, 3, 4)
    hub.ledger.failed("0", [bad], "it raised ValueError: no")
    all_but(hub, bad, "0", 1.0)
    hub._grants._failed_at = 1.0
    assert not asking(hub, "0", 2.0)[0].spans, "1 and 2 have not tried it"
    assert asking(hub, "0", 12.0)[0].spans == (bad,), "nobody has come for it in a lease"


def test_who_alone_holds_the_state_is_not_given_what_may_end_it() -> None:
    hub, bad = pool(1), Span(0, 0, 3, 4)
    hub.ledger.failed("0", [bad], "it raised ValueError: no")
    hub.ledger.commit(Version(2, 1), (Contribution("0", 1.0, (Span(0, 0, 1, 3), Span(0, 0, 4, 20))),))
    leased, actions = asking(hub, "0", 2.0)
    assert (leased.spans, leased.skipped) == ((), (bad,))
    (note,) = [a for a in actions if isinstance(a, Note)]
    assert note.kind == "quarantined"
    assert "0 alone holds the model" in note.text


def test_the_third_failure_quarantines_and_the_end_of_the_epoch_says_so() -> None:
    hub, bad = pool(1), Span(0, 0, 3, 4)
    hub.ledger.commit(Version(2, 1), (Contribution("0", 1.0, (Span(0, 0, 1, 3), Span(0, 0, 4, 20))),))
    hub.ledger.hold("0", [bad])
    kinds = [notes(hub._grants.failed(hub.workers["0"], (bad,), "it raised", 0.0)) for _ in range(3)]
    assert kinds == [["batch-failed"], ["bad-data"], ["bad-data", "quarantined"]]
    hub.ledger.release("0")
    leased, _ = asking(hub, "0", 1.0)
    assert leased.skipped == (bad,)
    done = hub.handle(
        Received("0", Applied(Version(2, 1), "d", (Contribution("0", 0.0, skipped=leased.skipped),))), 1.0
    )
    assert "epoch" not in notes(done), "that version was known"
    hub._versions.newest = Version(2, 1)
    done = hub.handle(
        Received("0", Applied(Version(3, 1), "d", (Contribution("0", 0.0, skipped=leased.skipped),))), 1.0
    )
    assert "epoch" in notes(done)
    restored = Coordinator.restore(hub.snapshot())
    assert restored.ledger.quarantine == hub.ledger.quarantine
    assert restored.ledger.progress(0).skipped == 1


def test_a_failure_before_anything_was_read_is_nobodys_batch() -> None:
    hub = Coordinator("r", 1)
    hub.handle(hello("0"), 0.0)
    hub.handle(Received("0", Entered(1, START)), 0.0)
    assert notes(hub.handle(Received("0", Left(False, "it raised ImportError: no")), 1.0))[0] == "left"


def test_a_goodbye_that_names_no_data_set_of_the_run_ends_nothing_but_itself() -> None:
    hub, bad = pool(3), Span(0, 0, 5, 6)
    for name in ("1", "2"):
        hub.ledger.hold(name, [bad])
        said = hub.handle(Received(name, Left(False, "it raised E", batch=(Span(99, 0, 0, 1), bad))), 0.1)
        assert {"1": "batch-failed", "2": "bad-data"}[name] in notes(said)
        hub.ledger.release(name)


def test_nobody_is_believed_to_have_failed_at_more_than_one_batch_of_what_it_has_leased() -> None:
    hub, bad = pool(2), Span(0, 0, 5, 6)
    hub.ledger.hold("1", [bad, Span(0, 0, 9, 12)])
    hub.handle(Received("1", Left(False, "it raised E", batch=(Span(0, 0, 2, 20),))), 0.1)
    assert hub.ledger._suspects[0, 0].positions.pairs() == [(5, 6)]
    hub.ledger.hold("0", [bad])
    hub.handle(Received("0", Left(False, "it raised E", batch=(Span(0, 0, 7, 8),))), 0.2)
    assert hub.ledger._suspects[0, 0].positions.pairs() == [(5, 6)]
