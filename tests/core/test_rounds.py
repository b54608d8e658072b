"""One member's part in the transaction."""

from __future__ import annotations

import pytest

from manyhands.core.messages import (
    Contribution,
    Freeze,
    Member,
    Opened,
    Proposed,
    Staged,
    Version,
    View,
    Want,
)
from manyhands.core.moves import Arrived, Commit, Heal, Heard, Installed, Join, Propose, Ready, Stand, Tell
from manyhands.core.rounds import Participant, Verdict
from manyhands.errors import ProtocolError


def view(number: int, *names: str) -> View:
    return View(number, tuple(Member(name, name, "h", 1) for name in names))


def member(*names: str) -> Participant:
    made = Participant("a", 1)
    made.handle(Opened(view(1, *names), 0, names, "first", Version(0, 0)))
    return made


def test_a_member_alone_commits_what_it_proposes() -> None:
    made = member("a")
    made.handle(Ready(0, 2.0))
    actions = made.handle(Propose(Contribution("a", 2.0)))
    assert [a.version for a in actions if isinstance(a, Commit)] == [Version(1, 1)]


def test_a_forced_freeze_fences_the_old_view() -> None:
    made = member("a", "b")
    assert made.handle(Freeze(2, False, "b is lost")) == [Stand(2)]
    assert made.verdict(1, 0, "contribution") is Verdict.DROP


def test_an_aborted_round_runs_again_in_the_next_view_with_the_same_contribution() -> None:
    made = member("a", "b")
    made.handle(Ready(0, 2.0))
    made.handle(Propose(Contribution("a", 2.0)))
    made.handle(Freeze(2, False, "b is lost"))
    actions = made.handle(Opened(view(2, "a"), 0, ("a",), "b is lost", Version(0, 0)))
    commits = [a for a in actions if isinstance(a, Commit)]
    assert [(c.version, c.contributions) for c in commits] == [(Version(1, 2), (Contribution("a", 2.0),))]


def test_a_planned_view_waits_until_every_member_holds_the_last_version() -> None:
    made = member("a", "b")
    made.handle(Propose(Contribution("a", 0.0)))
    made.handle(Freeze(2, True, "c joins"))
    made.handle(Opened(view(2, "a", "b", "c"), 1, ("a", "b"), "c joins"))
    made.version, made.round.told = Version(1, 1), False
    assert not [a for a in made.handle(Heard("b", Staged(1, 0))) if isinstance(a, Join)]
    assert [a for a in made.handle(Heard("b", Staged(1, 1))) if isinstance(a, Join)]


def test_a_member_that_went_on_still_tells_who_asks_in_the_old_view_what_it_holds() -> None:
    made = member("a", "b")
    made.handle(Freeze(2, False, "c is lost"))
    made.handle(Opened(view(2, "a", "b"), 0, ("a", "b"), "c is lost", Version(0, 0)))
    assert made.handle(Heard("b", Want(1, 0, "staged"))) == [Tell(("b",), Staged(1, 0))]


def test_proposing_twice_in_one_round_is_a_fault() -> None:
    made = member("a", "b")
    made.handle(Propose(Contribution("a", 0.0)))
    with pytest.raises(ProtocolError, match="twice"):
        made.handle(Propose(Contribution("a", 0.0)))


def test_a_member_is_called_when_another_has_begun_or_asks_for_what_it_has_not_proposed() -> None:
    by_proposal, by_slice, by_question = (member("a", "b") for _ in range(3))
    assert not by_proposal.called
    by_proposal.handle(Heard("b", Proposed(1, 0, Contribution("b", 0.0, rejected="NaN"))))
    by_slice.handle(Arrived("contribution", "b", 1, 0, 0, 0, 2.0, 0b10))
    by_question.handle(Heard("b", Want(1, 0, "proposed")))
    assert by_proposal.called
    assert by_slice.called
    assert by_question.called


def test_a_member_that_has_proposed_is_not_called_any_more() -> None:
    made = member("a", "b", "c")
    made.handle(Heard("b", Proposed(1, 0, Contribution("b", 2.0))))
    made.handle(Propose(Contribution("a", 0.0)))
    assert not made.called


def test_a_state_of_another_version_than_the_prescribed_one_is_not_taken() -> None:
    made = Participant("j", 1)
    made.handle(Opened(view(5, "a", "b", "j"), 10, ("a",), "j joins", Version(10, 4)))
    made.handle(Freeze(6, False, "a is lost"))
    made.handle(Opened(view(6, "b", "j"), 9, ("b",), "a is lost", Version(9, 4)))
    assert made.handle(Installed(Version(10, 4))) == []
    assert made.phase == "healing"
    made.handle(Installed(Version(9, 4)))
    assert made.phase == "member"


def test_a_member_keeps_the_seat_in_which_the_last_version_was_made_though_others_leave() -> None:
    made = Participant("b", 1)
    made.handle(Opened(view(1, "a", "b"), 0, ("a", "b"), "first", Version(0, 0)))
    made.handle(Propose(Contribution("b", 0.0)))
    made.handle(Heard("a", Proposed(1, 0, Contribution("a", 0.0))))
    made.handle(Freeze(2, False, "a left"))
    made.handle(Opened(view(2, "b"), 1, ("b",), "a left", Version(1, 1)))
    assert (made.rank, made.seat) == (0, 1)


def test_a_state_that_comes_when_the_hub_has_heard_that_it_is_lacking_is_fetched_anew() -> None:
    """The hub may go back to a checkpoint upon that, with this member to begin from there (I5)."""
    made = Participant("a", 1)
    made.handle(Opened(view(2, "b", "a"), 7, ("b",), "a joins"))
    made.handle(Freeze(3, False, "b is lost"))
    assert made.handle(Installed(Version(7, 1))) == []
    restored = Opened(view(4, "a"), 5, ("a",), "the first view", Version(5, 1), restore="kept/5")
    assert Heal(view(4, "a"), 5, ("a",), "kept/5") in made.handle(restored)
