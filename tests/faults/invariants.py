"""The invariants of a run, by name, from what its hub and its workers left behind."""

from collections import Counter

from training import EPOCHS, SAMPLES, SECONDS, Ran, Trace

from manyhands.core.shuffle import Shuffle


def assert_I1_one_commit(ran: Ran) -> None:
    """A version is adopted by every member that lives on, or by none of them."""
    numbers = [version.number for version in ran.versions]
    assert numbers == list(range(1, len(numbers) + 1)), "I1: a number is missing, or has two versions"
    history = {(version.number, version.view) for version in ran.versions}
    for trace in ran.traces:
        before = 0
        for kind, number, view in trace.numbers("applied", "healed"):
            if kind == "applied":
                assert number == before + 1, f"I1: {trace} has version {number} after {before}"
                assert (number, view) in history or _died_before_it_was_undone(ran, trace, number, view), (
                    f"I1: {trace.incarnation} lives on with version {number}·{view}, which the pool undid"
                )
            before = number
    for trace in [trace for trace in ran.traces if trace.said[-1][0] == "final"]:
        _, last, _ = trace.numbers("applied", "healed")[-1]
        assert last == numbers[-1], "I1: somebody ended without the last version"


def assert_I2_same_bits(ran: Ran, *, cut: bool = False) -> None:
    """After a commit all members hold the same bits. `cut`: somebody was evicted for silence alone."""
    digests = {(version.number, version.view): {version.digest} for version in ran.versions}
    for trace in ran.traces:
        for words in trace.said:
            if words[0] == "applied":
                digests.setdefault((int(words[1]), int(words[2])), set()).add(words[3])
    assert not {version: found for version, found in digests.items() if len(found - {""}) > 1}, "I2"
    assert cut or not ran.of_kind("evicted"), "I2: somebody held other bits"
    assert len({words[0] for words in ran.finals}) == 1, "I2: the last parameters differ"


def assert_I3_exactly_once(ran: Ran, quarantined: frozenset[int] = frozenset()) -> None:
    """Every sample of every epoch has been committed once: by the hub's count and by the workers' own.

    But for those that are named as quarantined, and left out of every epoch.
    """
    total = SAMPLES * EPOCHS
    left_out = len(quarantined) * EPOCHS
    learned = total - left_out
    samples = dict(ran.summary["samples"])
    assert samples.pop("read") >= learned, "I3: more is committed than was read"
    assert samples == {
        "committed": learned,
        "quarantined": left_out,
        "total": total,
        "missing": 0,
        "twice": 0,
    }, "I3"
    assert sum(version.samples for version in ran.versions) == learned, "I3: the versions hold other samples"
    made_of = ran.spans()
    positions: Counter[tuple[int, int]] = Counter()
    for version in ran.versions:
        for span in made_of[version.number, version.view]:
            positions.update((span.epoch, position) for position in range(span.start, span.stop))
    assert len(positions) == learned, "I3: samples are missing"
    for epoch, position in positions if quarantined else ():
        assert Shuffle(SAMPLES, 0, epoch).index(position) not in quarantined, "I3: one was learned from"
    assert set(positions.values()) == {1}, "I3: samples are in two versions"


def assert_I4_never_back(ran: Ran) -> None:
    """The pool's version never falls, and only whoever stood at its start has not fetched its state."""
    opened = [at for _, at, _ in ran.views]
    undone = ran.of_kind("rolled-back")
    if not undone:
        assert opened == sorted(opened), "I4: a view opened below the one before"
        assert ran.seen == sorted(ran.seen), "I4: the hub told of an older version"
    begun = {number: at for number, at, _ in ran.views}
    sources = []
    silent = set(ran.views[0][2])
    for trace in ran.traces:
        said = trace.numbers("applied", "healed")
        if said:
            silent.discard(trace.incarnation)
        if said and said[0][0] == "applied":
            sources.append(trace.incarnation)
        for kind, number, view in said:
            assert kind == "applied" or number >= begun[view], f"I4: {trace} healed below the pool"
    # Who stood at the start may have gone before it had applied a version, or told of one.
    assert len(sources) == 1 or (silent and not sources), f"I4: {sources} began from a state of their own"


def assert_I5_no_hang(ran: Ran) -> None:
    """The run came to its own end in time, and after every fault but the last there was a commit."""
    assert ran.outcome is not None, f"I5: the run did not end in {SECONDS:g} s"
    assert ran.outcome.code == 0, f"I5: {ran.outcome.why}"
    last = ran.versions[-1].at
    for recovery in ran.summary["recovery"]:
        assert recovery["next_commit"] is not None or recovery["at"] > last, f"I5: nothing after {recovery}"
    assert not [news for news in ran.news if "killing" in news], "I5: somebody had to be killed to end"


def assert_all(ran: Ran, quarantined: frozenset[int] = frozenset(), *, cut: bool = False) -> None:
    assert_I5_no_hang(ran)
    assert_I1_one_commit(ran)
    assert_I2_same_bits(ran, cut=cut)
    assert_I3_exactly_once(ran, quarantined)
    assert_I4_never_back(ran)


def _died_before_it_was_undone(ran: Ran, trace: Trace, number: int, view: int) -> bool:
    """Has the pool gone back to before this version, and this incarnation been in no view from then on?"""
    back = next((later for later, at, _ in ran.views if later > view and at < number), None)
    return back is not None and not any(
        later >= back and trace.incarnation in who for later, _, who in ran.views
    )


LOSS_BAND = 0.25
"""How far, as a part of it, the last loss may lie from that of the undisturbed training: other workers read
other batches, so it is never the same. Undisturbed runs with DiLoCo end between 0.0106 and 0.0122, for the
number of rounds differs, and its momentum with it; LocalSGD and EveryStep end between 0.0100 and 0.0102.
"""


def assert_learned_as_much(ran: Ran, undisturbed: float) -> None:
    assert abs(ran.loss - undisturbed) <= LOSS_BAND * undisturbed, f"{ran.loss} is not {undisturbed}"
