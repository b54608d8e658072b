"""What the workers of a storm wrote down, and what follows from it."""

from __future__ import annotations

from manyhands.core.messages import Dataset, Span, Version
from manyhands.core.testimony import Adopted, Began, Concluded, Partitioned, Testimony, account

DATA = Partitioned(Dataset(0, 30, 10, 1, "dynamic", 0))


def version(
    number: int, *spans: tuple[int, int], at: float = 0.0, digest: str = "", view: int = 1
) -> Adopted:
    spelt = tuple(Span(0, 0, start, stop) for start, stop in spans)
    return Adopted(at or float(number), Version(number, view), digest or str(number), spelt, 2, len(spans))


WHOLE = (version(1, (0, 10)), version(2, (10, 20)), version(3, (20, 30)))
STANDS = [each.version for each in WHOLE]


def test_every_sample_in_one_version_is_nothing_lost_and_nothing_doubled() -> None:
    told: tuple[Testimony, ...] = (DATA, Began(Version(0, 0)), *WHOLE, Concluded())
    found = account({1: told, 2: told}, STANDS, ())
    assert (found.total, found.committed, found.lost, found.twice) == (30, 30, 0, 0)
    assert (found.versions, found.unwitnessed, found.apart, found.results) == (3, 0, 0, 1)
    assert found.equal


def test_a_sample_in_no_version_is_lost_and_one_in_two_is_doubled() -> None:
    told = (DATA, version(1, (0, 10)), version(2, (5, 12)))
    found = account({1: told}, [each.version for each in told[1:]], ())
    assert (found.lost, found.twice) == (18, 5)


def test_only_the_view_that_won_counts_for_a_version() -> None:
    undone = version(2, (10, 30), view=1)
    won = version(2, (10, 30), view=2)
    found = account({1: (DATA, version(1, (0, 10)), undone, won)}, [Version(1, 1), Version(2, 2)], ())
    assert (found.lost, found.twice, found.equal) == (0, 0, True)


def test_a_version_that_nobody_held_has_lost_its_samples() -> None:
    found = account({1: (DATA, *WHOLE[:2])}, STANDS, ())
    assert (found.unwitnessed, found.lost) == (1, 10)


def test_digests_apart_are_told_from_those_of_which_a_bit_was_turned_over() -> None:
    flipped = (WHOLE[0], version(2, (10, 20), digest="other"), WHOLE[2])
    found = account({1: WHOLE, 2: flipped}, STANDS, ())
    assert (found.apart, found.shown, found.equal) == (1, 0, False)
    found = account({1: WHOLE, 2: flipped}, STANDS, (1.5,))
    assert (found.apart, found.shown, found.longest, found.equal) == (0, 1, 1, True)
    late = account({1: WHOLE, 2: flipped}, STANDS, (2.5,))
    assert (late.apart, late.shown) == (1, 0)


def test_a_flipped_bit_excuses_until_all_agree_again() -> None:
    flipped = (WHOLE[0], version(2, (10, 20), digest="x"), version(3, (20, 30), digest="y"))
    found = account({1: WHOLE, 2: flipped}, STANDS, (1.5,))
    assert (found.apart, found.shown, found.longest) == (0, 1, 2)
    again = (version(1, (0, 10), digest="x"), WHOLE[1], version(3, (20, 30), digest="y"))
    assert account({1: WHOLE, 2: again}, STANDS, (0.5,)).apart == 1


def test_two_that_count_different_samples_for_a_version_are_apart_whatever_was_flipped() -> None:
    other = (version(1, (0, 5)), *WHOLE[1:])
    assert account({1: WHOLE, 2: other}, STANDS, (0.5,)).apart == 1


def test_all_who_ended_hold_the_same_version_with_the_same_bits_or_it_is_said() -> None:
    ended, earlier = (*WHOLE, Concluded()), (*WHOLE[:2], Concluded())
    other = (*WHOLE[:2], version(3, (20, 30), digest="other"), Concluded())
    healed = (WHOLE[0], Began(Version(3, 1)), Concluded())
    killed = WHOLE[:1]
    assert account({1: ended, 2: healed, 3: killed}, STANDS, ()).results == 1
    assert account({1: ended, 2: earlier}, STANDS, ()).results == 2
    assert account({1: ended, 2: other}, STANDS, ()).results == 2
    assert account({1: killed}, STANDS, ()).results == 0
