"""Same bits, or out."""

from __future__ import annotations

from manyhands.core.digests import Digests
from manyhands.core.messages import Version

FIRST = Version(1, 1)


def after(*reports: tuple[str, str]) -> list[str]:
    """Who differs, once all of these have reported; in the order of their ranks."""
    digests, members = Digests(), tuple(sorted(who for who, _ in reports))
    for who, digest in reports[:-1]:
        assert digests.report(FIRST, who, digest, members) == {}
    return list(digests.report(FIRST, *reports[-1], members))


def test_nobody_is_judged_before_all_have_reported() -> None:
    assert after(("a", "x"), ("b", "x"), ("c", "x")) == []


def test_the_majority_is_right() -> None:
    assert after(("a", "y"), ("b", "x"), ("c", "x")) == ["a"]


def test_the_lowest_rank_is_right_in_a_tie_whoever_reports_first() -> None:
    assert after(("b", "y"), ("a", "x")) == ["b"]


def test_what_is_never_complete_is_forgotten() -> None:
    digests = Digests()
    for number in range(1, 100):
        digests.report(Version(number, 1), "a", "x", ("a", "b"))
    assert digests.report(Version(99, 1), "b", "y", ("a", "b")) == {
        "b": "its version 99·1 has digest y, the others have x"
    }
    assert digests.report(FIRST, "b", "y", ("a", "b")) == {}
