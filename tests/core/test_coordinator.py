"""The hub's decisions."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest
from msgspec.structs import replace

from manyhands._version import __version__
from manyhands.core.checkpoints import Plan
from manyhands.core.coordinator import EPOCH_BITS, Coordinator
from manyhands.core.decisions import (
    Action,
    Close,
    Compared,
    Connected,
    Disconnected,
    End,
    Journal,
    Note,
    Received,
    Send,
    Stopped,
    Ticked,
    VersionRecord,
)
from manyhands.core.messages import (
    START,
    Acknowledged,
    Applied,
    Asked,
    Beat,
    Contribution,
    Dataset,
    Declared,
    Entered,
    Evicted,
    Finished,
    Followed,
    Freeze,
    Hello,
    Kept,
    Leased,
    Left,
    Message,
    Opened,
    Ready,
    Refuse,
    Save,
    Saved,
    SavedHolding,
    Span,
    Standing,
    Unreadable,
    Version,
    View,
    Welcome,
    decode_for_hub,
    encode,
)
from manyhands.errors import ProtocolError

DATA = Dataset(0, 20, 1, 2, "dynamic", 0)
FIRST = Version(1, 1)


def hello(
    name: str,
    software: str = __version__,
    standing: Standing | None = None,
    strategy: str = "s",
    epoch: int = 1 << EPOCH_BITS,
) -> Connected:
    ready = Ready((), strategy)
    me = Hello("r", name, name, 1, "h", 1, software, standing, (DATA,), ready, epoch=epoch)
    return Connected(me)


def sent(actions: Iterable[Action], kind: type[Message]) -> list[str]:
    return [a.incarnation for a in actions if isinstance(a, Send) and isinstance(a.message, kind)]


def notes(actions: Iterable[Action]) -> list[str]:
    return [a.kind for a in actions if isinstance(a, Note)]


def standing(view: View | None, version: Version = START, **more: object) -> Standing:
    known = {"stops_at": version.number, "held": (), "unacknowledged": (), "healed": True} | more
    return Standing(view=0, version=version, member_of=view, **known)  # type: ignore[arg-type]


def pool(size: int, lease: float = 10.0) -> Coordinator:
    """A hub at time 0 whose members are all in the first view, and hold version 1."""
    hub = Coordinator("r", size, lease)
    names = [str(i) for i in range(size)]
    for name in names:
        hub.handle(hello(name), 0.0)
    read = tuple(Contribution(n, 1.0, (Span(0, 0, i, i + 1),)) for i, n in enumerate(names))
    for name in names:
        hub.handle(Received(name, Entered(1, START)), 0.0)
        hub.handle(Received(name, Applied(FIRST, "d", read if name == "0" else None)), 0.0)
    return hub


def test_the_first_view_opens_when_all_who_are_expected_are_ready() -> None:
    hub = Coordinator("r", 2)
    assert not sent(hub.handle(hello("0"), 0.0), Opened)
    assert sent(hub.handle(hello("1"), 0.0), Opened) == ["0", "1"]


def test_the_first_view_does_not_wait_for_a_worker_that_was_refused() -> None:
    hub = Coordinator("r", 3)
    hub.handle(hello("0"), 0.0)
    assert sent(hub.handle(hello("1", strategy="another"), 0.0), Refuse) == ["1"]
    assert sent(hub.handle(hello("2"), 0.0), Opened) == ["0", "2"]


def test_the_first_view_does_not_wait_for_a_worker_with_other_software() -> None:
    hub = Coordinator("r", 2)
    hub.handle(hello("0"), 0.0)
    assert sent(hub.handle(hello("1", "0.0"), 0.0), Opened) == ["0"]


def test_a_worker_that_was_refused_and_comes_back_mended_is_waited_for_like_the_others() -> None:
    hub = Coordinator("r", 3)
    hub.handle(hello("0"), 0.0)
    hub.handle(hello("1", strategy="another"), 0.0)
    again = Hello("r", "1b", "1", 1, "h", 1, __version__, None, (DATA,), Ready((), "s"))
    assert not sent(hub.handle(Connected(again), 0.0), Opened)
    assert sent(hub.handle(hello("2"), 0.0), Opened) == ["0", "1b", "2"]


def test_while_it_waits_for_workers_it_says_for_how_many_and_how_long() -> None:
    hub = Coordinator("r", 3, gather=60.0)
    assert hub.why == "waiting for 3 workers, at most 60 s from the first that is ready"
    hub.handle(hello("0"), 5.0)
    hub.handle(Ticked(), 12.0)
    assert hub.why == "waiting for 2 of 3 workers, at most 53 s more"
    for name in "12":
        hub.handle(hello(name), 13.0)
    assert hub.why == ""


def test_a_worker_with_other_software_is_refused() -> None:
    assert sent(Coordinator("r").handle(hello("0", "0.0"), 0.0), Refuse) == ["0"]


def test_of_a_worker_that_is_killed_what_it_had_read_by_its_last_contribution_is_known() -> None:
    hub = pool(2)
    hub.handle(Received("1", Beat(read=5)), 1.0)
    second = (Contribution("0", 1.0, read=3), Contribution("1", 1.0, read=9))
    hub.handle(Received("0", Applied(Version(2, 1), "d", second)), 1.1)
    hub.handle(Received("1", Beat(read=5)), 1.2)  # it was on its way when the version came
    assert [worker.read for worker in hub.workers.values()] == [3, 9]
    assert [worker.read for worker in Coordinator.restore(hub.snapshot()).workers.values()] == [3, 9]


def test_a_broken_connection_costs_the_place_after_the_grace() -> None:
    hub = Coordinator("r", 2)
    for name in "01":
        hub.handle(hello(name), 0.0)
    hub.handle(Disconnected("1"), 1.0)
    assert not sent(hub.handle(Ticked(), 1.2), Freeze)
    assert sent(hub.handle(Ticked(), 1.4), Freeze) == ["0"]


def test_a_silent_worker_is_evicted_after_its_lease() -> None:
    hub = Coordinator("r", 1, 10.0)
    hub.handle(hello("0"), 0.0)
    assert sent(hub.handle(Ticked(), 10.5), Evicted) == ["0"]


def test_a_restored_hub_is_as_it_was() -> None:
    hub = Coordinator("r", 1)
    hub.handle(hello("0"), 0.0)
    again = Coordinator.restore(hub.snapshot())
    assert (again.view, again.version, again.snapshot()) == (hub.view, Version(0, 0), hub.snapshot())


def test_where_nobody_is_heard_any_more_the_hub_may_be_cut_off_and_waits() -> None:
    hub = pool(3)
    hub.handle(Received("1", Beat()), 0.9)
    assert notes(hub.handle(Ticked(), 10.1)) == ["hub"]
    assert not hub.handle(Ticked(), 300.0)
    hub.handle(Received("1", Beat()), 300.1)
    assert notes(hub.handle(Ticked(), 300.2)) == ["lost", "lost"]
    assert hub.state == "changing"


def test_a_hub_that_is_restarted_while_it_is_cut_off_waits_for_who_holds_the_version_too() -> None:
    hub = Coordinator.restore(pool(2, lease=2.0).snapshot())
    for now in range(60):
        hub.handle(Ticked(), float(now))
    assert hub.state != "failed", hub.why


def test_who_is_silent_for_ever_is_lost_in_the_end_and_at_once_where_it_has_a_successor() -> None:
    hub = pool(2)
    hub.handle(Ticked(), 599.0)
    assert hub.state == "training"
    assert any(isinstance(a, End) for a in hub.handle(Ticked(), 601.0))
    hub = pool(1)
    hub.handle(Ticked(), 20.0)
    new = hello("again")
    hub.handle(Connected(replace(new.hello, name="0")), 21.0)
    assert any(isinstance(a, End) for a in hub.handle(Ticked(), 21.1))


def test_the_only_holder_of_a_version_has_its_whole_lease_to_come_back() -> None:
    hub = pool(1, lease=2.0)
    hub.handle(Disconnected("0"), 1.0)
    assert not notes(hub.handle(Ticked(), 2.9))
    assert any(isinstance(a, End) and not a.ok for a in hub.handle(Ticked(), 3.1))


def test_nobody_joins_before_every_member_has_entered_the_last_view() -> None:
    hub = pool(2)
    freeze = hub.handle(hello("2"), 0.0)
    assert sent(freeze, Freeze) == ["0", "1"]
    assert hub.view is not None
    for name in "01":
        opened = hub.handle(Received(name, _standing_in(hub, 2)), 0.0)
    assert sent(opened, Opened) == ["0", "1", "2"]
    hub.handle(Received("0", Entered(2, FIRST)), 0.0)
    hub.handle(Received("2", Entered(2, FIRST)), 0.0)
    assert not sent(hub.handle(hello("3"), 0.0), Freeze)
    assert sent(hub.handle(Received("1", Entered(2, FIRST)), 0.0), Freeze) == ["0", "1", "2"]


def _standing_in(hub: Coordinator, view: int) -> Standing:
    return Standing(view, FIRST, 1, (), (), hub.view, True)


def test_a_member_that_comes_back_is_leased_nothing_before_it_has_said_what_it_holds() -> None:
    """What was asked before is answered once, and stays leased (I3)."""
    hub = pool(2)
    hub.handle(Received("1", Asked(0, 1, 2)), 0.0)
    hub.handle(Disconnected("1"), 0.1)
    rest = tuple(Contribution(n, 9.0, (Span(0, 0, a, a + 9),)) for n, a in (("0", 2), ("1", 11)))
    second = Applied(Version(2, 1), "d", rest)
    back = hub.handle(hello("1", standing=standing(hub.view, Version(2, 1), unacknowledged=(second,))), 0.2)
    assert sent(back, Leased) == ["1"]
    assert hub.ledger.progress(0).leased == 2


def test_a_member_whose_digest_differs_is_evicted_and_counts_as_one_fault() -> None:
    hub = pool(3)
    read = tuple(Contribution(n, 0.0, ()) for n in "012")
    for name, digest in (("0", "d"), ("1", "e")):
        hub.handle(Received(name, Applied(Version(2, 1), digest, read)), 0.0)
    last = hub.handle(Received("2", Applied(Version(2, 1), "d", None)), 0.0)
    assert sent(last, Evicted) == ["1"]
    assert notes(last) == ["evicted"]


def test_a_pool_whose_only_source_died_before_anybody_healed_starts_again_though_the_hub_restarts() -> None:
    hub = Coordinator("r", 3, 2.0)
    for name in "012":
        hub.handle(hello(name), 0.0)
    view = hub.view
    assert view is not None
    hub.handle(Disconnected("0"), 0.1)
    hub.handle(Ticked(), 0.5)
    for name in "12":
        hub.handle(Received(name, Standing(2, START, 0, (), (), view, False)), 0.5)
    hub = Coordinator.restore(hub.snapshot())
    hub.handle(Ticked(), 1.0)
    for name in "12":
        hub.handle(hello(name, standing=standing(view, healed=False)), 1.1)
    assert sent(hub.handle(hello("3"), 1.2), Opened) == [] == sent(hub.handle(Ticked(), 2.9), Opened)
    for name in "123":
        hub.handle(Received(name, Beat()), 2.9)
    assert sent(hub.handle(Ticked(), 3.1), Opened) == ["1", "2", "3"]


def test_a_run_begins_with_no_state_in_which_something_was_learned_that_the_hub_has_not_heard_of() -> None:
    """Its samples would be read again, and be in the model twice (I3)."""
    hub = Coordinator("r", 2, 2.0, gather=5.0)
    learned = Ready((), "s", learned=True)
    again = [Connected(msgspec.structs.replace(hello(n).hello, ready=learned)) for n in "01"]
    assert not sent(hub.handle(again[0], 0.0), Opened)
    actions = hub.handle(hello("2"), 1.0)
    assert {a.message.sources for a in actions if isinstance(a, Send) and isinstance(a.message, Opened)} == {
        ("2",)
    }
    other = Coordinator("r", 2, 2.0, gather=5.0)
    other.handle(again[0], 0.0)
    assert [type(a) for a in other.handle(again[1], 1.0)][-1] is End
    assert "start a new run" in other.why


def test_a_member_of_a_view_that_the_journal_does_not_know_is_told_which_folder_the_hub_needs() -> None:
    view = pool(2).view
    (refused,) = [
        a
        for a in Coordinator("r", 2).handle(hello("0", standing=standing(view)), 0.0)
        if isinstance(a, Send) and isinstance(a.message, Refuse)
    ]
    assert isinstance(refused.message, Refuse)
    assert "restart the hub on the folder of run r" in refused.message.why


def taking_over(*members: Connected, salt: int = 5) -> Coordinator:
    hub = Coordinator("r", 2, lease=2.0)
    hub.take_over(salt)
    for member in members:
        hub.handle(member, 0.0)
    return hub


def test_a_hub_that_takes_over_asks_the_members_where_they_stand_and_goes_on_from_the_newest() -> None:
    view = pool(2).view
    hub = taking_over(hello("0", standing=standing(view)))
    assert sent(hub.handle(Ticked(), 1.0), Freeze) == [], "the other has a lease to report"
    assert sent(hub.handle(hello("1", standing=standing(view)), 1.5), Freeze) == ["0", "1"]
    held = (SavedHolding(0, 0, ((0, 4),)),)
    second = Version(2, 1)
    hub.handle(Received("0", Standing(2, FIRST, 1, (), (), view, holdings=())), 1.6)
    hub.handle(Received("1", Standing(2, second, 2, (), (), view, holdings=held, replays=True)), 1.6)
    assert hub.version == second
    assert hub.ledger.progress(0).committed == 4
    assert hub.view is not None
    assert hub.view.number > view.number


def test_a_hub_that_takes_over_never_begins_anew_by_itself() -> None:
    """A fresh process must not become the source of a run that others may still hold (I4)."""
    hub = taking_over(hello("7", epoch=0))
    for now in range(1, 60):
        hub.handle(Received("7", Beat()), float(now))
        assert sent(hub.handle(Ticked(), float(now)), Opened) == []
    assert hub.state == "waiting"
    assert sent(hub.handle(Ticked(), 60.5), Finished) == ["7"]
    assert hub.state == "failed"


def test_an_older_hub_has_no_say_once_it_hears_of_a_newer_one() -> None:
    old, new = pool(2), taking_over(hello("0", standing=standing(pool(2).view)))
    assert new.epoch > old.epoch
    again = hello("0", standing=standing(old.view), epoch=new.epoch)
    closed = [a.incarnation for a in old.handle(again, 5.0) if isinstance(a, Close)]
    assert closed == ["0", "1"]
    assert {type(a) for a in old.handle(hello("1"), 6.0)} == {Close}
    assert old.handle(Ticked(), 60.0) == []


def test_an_older_hub_ends_when_a_worker_of_a_newer_one_asks_and_again_when_it_is_restarted() -> None:
    hub = pool(2)
    assert hub.handle(Compared(Followed("r", "9", "nine", hub.epoch)), 1.0) == []
    assert hub.handle(Compared(Followed("another", "9", "nine", hub.epoch + 1)), 1.0) == []
    actions = hub.handle(Compared(Followed("r", "9", "nine", hub.epoch + 1)), 1.0)
    assert [a.incarnation for a in actions if isinstance(a, Close)] == ["0", "1", "9"]
    assert [(a.ok, "as worker nine says" in a.why) for a in actions if isinstance(a, End)] == [(False, True)]
    assert hub.superseded
    assert Coordinator.restore(hub.snapshot()).superseded
    assert hub.serves("r") == 0


def test_who_comes_to_a_hub_that_waits_to_take_over_hears_of_no_epoch_that_would_end_the_hub_before() -> None:
    hub = Coordinator("r", 2, 10.0)
    hub.take_over(3)
    view = pool(2).view
    fresh, member = hub.handle(hello("7"), 0.0), hub.handle(hello("0", standing=standing(view)), 0.0)
    epochs = [
        a.message.epoch for a in (*fresh, *member) if isinstance(a, Send) and isinstance(a.message, Welcome)
    ]
    assert epochs == [0, hub.epoch]


def test_a_hub_that_takes_over_asks_for_a_view_that_is_newer_than_all_that_another_hub_began() -> None:
    """Members that were frozen for view 3 take a Freeze for view 2 to be old, and never answered it (I5)."""
    view = pool(3).view
    frozen = msgspec.structs.replace(standing(view), view=3)
    hub = taking_over(hello("0", standing=frozen), hello("1", standing=standing(view)))
    actions = hub.handle(hello("2", standing=standing(view)), 0.5)
    assert {a.message.view for a in actions if isinstance(a, Send) and isinstance(a.message, Freeze)} == {4}


def test_a_version_that_came_with_a_takeover_leaves_the_ledger_when_its_only_holder_dies() -> None:
    """The hub had not adopted it; its samples stayed committed, and the epoch never ended (I3)."""
    view = pool(2).view
    assert view is not None
    hub = taking_over(hello("0", standing=standing(view)), hello("1", standing=standing(view)))
    second, held = Version(2, 1), (SavedHolding(0, 0, ((0, 4),)),)
    before = (SavedHolding(0, 0, ((0, 2),)),)
    hub.handle(Received("0", Standing(2, FIRST, 1, (Span(0, 0, 2, 4),), (), view, holdings=before)), 0.1)
    hub.handle(Received("1", Standing(2, second, 2, (), (), view, holdings=held, replays=True)), 0.1)
    assert hub.ledger.progress(0).committed == 4
    hub.handle(Received("1", Left(False, "it gives up")), 0.2)
    mine = Standing(3, FIRST, 1, (Span(0, 0, 2, 4),), (), hub.view, holdings=before)
    hub.handle(Received("0", mine), 0.3)
    assert hub.version == FIRST
    assert (hub.ledger.progress(0).committed, hub.ledger.leases(0)) == (2, {"0": [(2, 4)]})


def test_a_hub_that_takes_over_journals_no_version_before_it_knows_with_which_one_the_pool_goes_on() -> None:
    """Members of an older view went on meanwhile, and what they made stayed in the journal."""
    view = pool(2).view
    assert view is not None
    hub = taking_over(hello("0", standing=standing(view)))
    made = (Contribution("0", 1.0, (Span(0, 0, 2, 3),)), Contribution("1", 0.0))
    actions = hub.handle(Received("0", Applied(Version(2, 1), "d", made)), 0.1)
    alone = View(4, view.members[1:])
    held = (SavedHolding(0, 0, ((4, 5),)),)
    actions += hub.handle(hello("1", standing=standing(alone, Version(3, 4), holdings=held)), 0.2)
    last = Standing(5, Version(3, 4), 3, (), (), alone, holdings=held)
    actions += hub.handle(Received("1", last), 0.3)
    assert hub.version == Version(3, 4)
    assert not any(
        isinstance(action, Journal) and isinstance(action.record, VersionRecord) for action in actions
    )


def test_two_hubs_that_take_over_at_once_do_not_wait_for_who_was_with_the_other_meanwhile() -> None:
    """It was in a newer view by then, and took what this hub asked it for to be old (I5)."""
    view = pool(2).view
    assert view is not None
    hub = taking_over(hello("0", standing=standing(view)))
    assert sent(hub.handle(Ticked(), 2.0), Freeze)[:2] == ["0", "1"]
    newer = View(7, view.members[:1])
    back = msgspec.structs.replace(standing(newer), view=7)
    again = hub.handle(hello("0", standing=back, epoch=hub.epoch - 1), 2.1)
    assert [a.message.view for a in again if isinstance(a, Send) and isinstance(a.message, Freeze)] == [8]


def test_a_run_that_is_lost_ends_once_with_the_reason() -> None:
    hub = pool(2)
    hub.handle(Disconnected("0"), 0.0)
    hub.handle(Disconnected("1"), 0.0)
    hub.handle(hello("7"), 9.5)
    actions = hub.handle(Ticked(), 10.5)
    assert [action.why for action in actions if isinstance(action, End)] == [hub.why]
    assert "worker 1 is lost" in hub.why


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_is_over_does_not_go_on_with_who_becomes_ready_then(stopped: bool) -> None:
    hub = pool(1)
    hub.handle(Connected(replace(hello("7").hello, ready=None)), 0.5)
    hub.handle(Stopped("a key was pressed") if stopped else Received("0", Left(False, "it raised")), 1.0)
    state, why = hub.state, hub.why
    assert hub.handle(Received("7", Ready((), "s")), 1.1) == []
    assert hub.handle(Ticked(), 1.2) == []
    assert (hub.state, hub.why, hub.view.number) == (state, why, 1)


def test_a_hub_that_waits_to_take_over_offers_no_place_and_gives_way_to_nobody_before_a_member_came() -> None:
    view = pool(2).view
    hub = Coordinator("r", 2, 10.0)
    hub.take_over(3)
    assert hub.serves("r") == 0
    hub.handle(hello("0", standing=standing(view)), 0.0)
    assert hub.serves("r") == hub.epoch
    assert hub.serves("another") == 0
    assert hub.handle(Compared(Followed("r", "1", "1", hub.epoch + 1)), 0.1) == []
    assert not hub.superseded


def test_of_two_hubs_that_take_over_at_once_one_is_the_newer() -> None:
    view = pool(2).view
    one, other = (taking_over(hello("0", standing=standing(view)), salt=salt) for salt in (3, 4))
    assert one.epoch < other.epoch
    lost = other.handle(hello("1", standing=standing(View(9, view.members)), epoch=one.epoch), 9.0)
    assert sent(lost, Refuse) == []


def test_a_restarted_hub_still_knows_what_the_dead_had_sent() -> None:
    hub = pool(2)
    hub.handle(Received("1", Beat(sent=7, received=8, read=9)), 0.0)
    again = Coordinator.restore(hub.snapshot())
    assert again.workers["1"].beat.sent == 7


def test_members_that_reach_the_hub_but_not_each_other_lose_one_after_a_lease() -> None:
    hub = pool(3, lease=2.0)
    for second in range(4):
        for name in "012":
            cut = ("1",) if name == "2" else ()
            hub.handle(Received(name, Beat(unreachable=cut)), float(second))
        actions = hub.handle(Ticked(), float(second))
    assert sent(actions, Evicted) == ["2"]
    assert sent(actions, Freeze) == ["0", "1"]


def test_a_member_that_is_refused_leaves_the_view_to_the_others() -> None:
    hub = pool(2)
    hub.handle(Received("0", Declared(Dataset(1, 50, 1, 1, "dynamic", 0))), 1.0)
    actions = hub.handle(Received("1", Declared(Dataset(1, 51, 1, 1, "dynamic", 0))), 1.0)
    assert sent(actions, Refuse) == ["1"]
    assert sent(actions, Freeze) == ["0"]


def test_a_hub_that_restarts_before_the_first_view_gathers_no_longer_than_another() -> None:
    hub = Coordinator("r", 3, gather=60.0)
    for name in "01":
        hub.handle(hello(name), 0.0)
    hub = Coordinator.restore(hub.snapshot())
    hub.handle(Ticked(), 10.0)
    for name in "01":
        hub.handle(hello(name), 11.0)
    for second in range(20, 80, 5):
        for name in "01":
            hub.handle(Received(name, Beat()), float(second))
        actions = hub.handle(Ticked(), float(second))
        if actions:
            break
    assert sent(actions, Opened) == ["0", "1"]


def test_a_version_that_the_ledger_refuses_is_not_adopted() -> None:
    hub = pool(2)
    beyond = (Contribution("0", 9.0, (Span(0, 0, 15, 24),)), Contribution("1", 0.0))
    with pytest.raises(ProtocolError, match="no part of a known data set"):
        hub.handle(Received("0", Applied(Version(2, 1), "d", beyond)), 1.0)
    assert hub.version == FIRST


def test_a_digest_that_comes_with_a_standing_starts_the_change_anew_with_everybody() -> None:
    """Otherwise the change was decided from the standings of nobody, and the run ended (I4)."""
    hub = pool(4)
    read = tuple(Contribution(n, 0.0, ()) for n in "0123")
    second = Version(2, 1)
    for name in "012":
        hub.handle(Received(name, Applied(second, "e" if name == "0" else "d", read)), 1.0)
    hub.handle(hello("4"), 1.0)
    late = Standing(2, second, 2, (), (Applied(second, "d", read),), hub.view, True)
    actions = hub.handle(Received("3", late), 1.0)
    assert sent(actions, Evicted) == ["0"]
    assert sent(actions, Freeze) == ["1", "2", "3"]
    assert not any(isinstance(action, End) for action in actions)


def test_who_says_again_what_the_journal_has_hears_that_it_has_it() -> None:
    hub = pool(2)
    assert hub.view is not None
    hub.handle(Ticked(), 0.1)
    again = hub.handle(Received("1", Applied(FIRST, "d", None)), 0.2)
    assert sent(again, Acknowledged) == ["1"]
    back = hub.handle(hello("0", standing=standing(hub.view, FIRST)), 0.3)
    assert sent(back, Acknowledged) == ["0"]


def test_a_joiner_that_is_refused_by_who_has_yet_to_enter_its_view_keeps_its_place() -> None:
    hub = pool(2, lease=2.0)
    hub.handle(hello("2"), 0.0)
    for name in "01":
        hub.handle(Received(name, _standing_in(hub, 2)), 0.0)
    hub.handle(Received("0", Entered(2, FIRST)), 0.0)
    for second in range(6):
        for name in "012":
            cut = ("1",) if name == "2" else ()
            hub.handle(Received(name, Beat(unreachable=cut)), float(second))
        assert not sent(hub.handle(Ticked(), float(second)), Evicted)


def cut_off(hub: Coordinator, who: str, now: float) -> float:
    """Worker 2, as this incarnation, is cut off from the others until it loses its place; returns when."""
    for second in range(1, 40):
        for name in "01":
            hub.handle(Received(name, Beat(unreachable=(who,))), now + second)
        hub.handle(Received(who, Beat(unreachable=("0", "1"))), now + second)
        if sent(hub.handle(Ticked(), now + second), Evicted):
            return now + second
    raise AssertionError(f"{who} keeps its place")


def change(hub: Coordinator, now: float) -> None:
    """All who are asked where they stand say so, and enter the next view."""
    asked = hub._views.change
    assert asked is not None
    for name in list(asked.waiting):
        hub.handle(Received(name, Standing(asked.number, FIRST, 1, (), (), hub.view)), now)
    assert hub.view is not None
    for name in [member.incarnation for member in hub.view.members]:
        hub.handle(Received(name, Entered(hub.view.number, FIRST)), now)


def test_who_is_cut_off_again_and_again_holds_the_others_up_ever_more_seldom() -> None:
    hub = pool(3)
    now = cut_off(hub, "2", 0.0)
    change(hub, now)
    back = hello("2b").hello
    hub.handle(Connected(replace(back, name="2")), now)
    change(hub, now)
    assert [member.incarnation for member in hub.view.members] == ["0", "1", "2b"]
    now = cut_off(hub, "2b", now)
    change(hub, now)
    said = hub.handle(Connected(replace(back, name="2", incarnation="2c")), now + 1.0)
    assert notes(said) == ["joined", "barred"]
    for second in range(1, 10):
        for name in ("0", "1", "2c"):
            hub.handle(Received(name, Beat()), now + second)
        assert hub.handle(Ticked(), now + second) == []
    assert sent(hub.handle(Ticked(), now + 10.0), Freeze) == ["0", "1"]
    change(hub, now + 10.0)
    assert [member.incarnation for member in hub.view.members] == ["0", "1", "2c"]


def test_a_run_whose_workers_were_all_told_to_end_is_stopped_and_not_lost() -> None:
    hub = pool(2)
    hub.handle(Received("0", Left(False, "it was told to end", told=True)), 1.0)
    actions = hub.handle(Received("1", Left(False, "it was told to end", told=True)), 1.1)
    assert [action.ok for action in actions if isinstance(action, End)] == [True]
    assert hub.state == "stopped"
    assert Coordinator.restore(hub.snapshot()).state == "stopped"


def test_a_run_that_a_rule_ended_says_which() -> None:
    hub = pool(1)
    hub.handle(Received("0", Left(True, "loss 0.1 is below 0.2")), 1.0)
    assert hub.why == "every worker has finished: loss 0.1 is below 0.2"


def test_who_comes_back_when_the_hub_has_forgotten_it_is_told_that_it_is_out() -> None:
    hub = pool(3)
    hub.membership.remembered = 0
    view = hub.view
    hub.handle(Disconnected("2"), 1.0)
    hub.handle(Ticked(), 2.0)
    for name in "01":
        hub.handle(Received(name, Standing(2, FIRST, 1, (), (), view)), 2.1)
    hub.handle(Ticked(), 2.2)
    assert "2" not in hub.workers
    back = hello("2", standing=standing(view, FIRST, held=(Span(0, 0, 3, 4),)))
    assert [type(a.message) for a in hub.handle(back, 3600.0) if isinstance(a, Send)] == [Evicted]
    assert sent(hub.handle(Received("2", Asked(0, 0, 4)), 3600.0), Evicted) == ["2"]
    assert "2" not in hub.workers
    assert hub.ledger.leases(0) == {}


def test_a_hub_that_restarts_knows_what_those_have_read_whom_it_has_forgotten() -> None:
    hub = pool(2)
    hub.membership.remembered = 0
    hub.handle(Received("1", Beat(read=7)), 0.5)
    hub.handle(Received("1", Left(False, "it gives up")), 1.0)
    hub.handle(Received("0", Standing(2, FIRST, 1, (), (), hub.view)), 1.1)
    hub.handle(Ticked(), 1.2)
    assert [*hub.workers] == ["0"]
    assert Coordinator.restore(hub.snapshot()).membership.totals.read == 7


def test_of_a_version_that_only_who_healed_to_it_holds_the_hub_learns_what_it_has_committed() -> None:
    """Those who made it were gone before the hub had heard of what: its samples were leased again (I3)."""
    hub = pool(2)
    view = hub.view
    hub.handle(hello("2"), 0.1)
    for name in "01":
        hub.handle(Received(name, Standing(2, Version(2, 1), 2, (), (), view)), 0.2)
    hub.handle(Received("2", Entered(2, Version(2, 1))), 0.3)
    hub.handle(Received("0", Left(False, "it gives up")), 0.4)
    hub.handle(Received("1", Left(False, "it gives up")), 0.4)
    known = (SavedHolding(0, 0, ((0, 5),)),)
    hub.handle(Received("2", Standing(4, Version(2, 1), 2, (), (), hub.view, holdings=known)), 0.5)
    assert hub.version == Version(2, 1)
    assert hub.ledger.progress(0).committed == 5


def test_a_hub_takes_over_from_a_member_whose_script_has_yet_to_partition_a_data_set() -> None:
    """Its holdings tell of data set 1, its Hello does not."""
    view = pool(2).view
    held = (SavedHolding(0, 0, ((0, 2),)), SavedHolding(1, 0, ((0, 4),)))
    hub = taking_over(hello("0", standing=standing(view, Version(1, 1), holdings=held)))
    hub = Coordinator.restore(hub.snapshot())
    hub.handle(Received("0", Declared(replace(DATA, index=1))), 0.1)
    assert hub.ledger.progress(1).committed == 4


def test_a_run_resumed_for_more_epochs_is_not_finished_before_its_scripts_have_said_so() -> None:
    hub = Coordinator("r", 1)
    kept = Kept("/kept/v00000009-00000000-1", Version(9, 1), (SavedHolding(0, DATA.epochs, ()),))
    hub.resume(kept, (DATA,), (), "s")
    me = replace(hello("0").hello, datasets=())  # it partitions within `with pool.share`, which comes first
    hub.handle(Connected(me), 0.0)
    assert hub.view is not None
    hub.handle(Received("0", Entered(hub.view.number, kept.version)), 0.1)
    actions = hub.handle(Received("0", Left(False, "it raised ValueError")), 0.2)
    actions += hub.handle(Ticked(), 0.3)
    assert not any(isinstance(action, End) and action.ok for action in actions), hub.why


@pytest.mark.parametrize("number", [-1, 2**62, 2**64 - 1])
def test_a_number_with_which_the_hub_could_not_reckon_is_no_message(number: int) -> None:
    """No worker can make the hub compute with it, or write a snapshot that cannot be read."""
    version = Version(number, 1)
    for message in (
        replace(hello("0").hello, epoch=number),
        Followed("r", "0", "0", number),
        Left(False, "", batch=(Span(0, number, 0, 1),)),
        Left(False, "", batch=(Span(0, 0, number, 1),)),
        Left(False, "", batch=(Span(0, 0, 0, number),)),
        Standing(1, START, 0, holdings=(SavedHolding(0, 0, ((0, number),)),)),
        Applied(version, "d"),
        Entered(1, version),
        Asked(0, 0, number),
    ):
        with pytest.raises(msgspec.DecodeError, match=r"Expected `int`|out of range"):
            decode_for_hub(encode(message))


def test_a_hub_takes_over_from_one_of_the_greatest_epoch_and_can_still_be_restarted() -> None:
    hub = Coordinator("r", 1)
    hub.take_over((1 << EPOCH_BITS) - 1)
    view = pool(2).view
    hub.handle(hello("0", standing=standing(view, Version(1, 1)), epoch=2**62 - 1), 0.0)
    assert Coordinator.restore(hub.snapshot()).epoch == hub.epoch > 2**62 - 1


def test_a_hub_whose_journal_lost_its_end_learns_from_the_members_what_it_has_forgotten() -> None:
    """A machine that lost its power: versions 2 and 3 had been acknowledged, so no member keeps them."""
    hub = Coordinator.restore(pool(2).snapshot())
    view, third = hub.view, Version(3, 1)
    known = (SavedHolding(0, 0, ((0, 10),)),)
    back = [hub.handle(hello(name, standing=standing(view, third, holdings=known)), 1.0) for name in "01"]
    assert sent(back[1], Freeze) == ["0", "1"]
    for name in "01":
        hub.handle(Received(name, Standing(2, third, 3, (), (), view, holdings=known)), 1.2)
    assert hub.version == third
    assert hub.ledger.progress(0).committed == 10
    read = (Contribution("0", 1.0, (Span(0, 0, 10, 12),)), Contribution("1", 1.0, ()))
    for name in "01":
        hub.handle(Received(name, Applied(Version(4, 2), "d", read if name == "0" else None)), 1.3)
    assert hub.version == Version(4, 2)
    assert not sent(hub.handle(Ticked(), 1.4), Freeze)


def test_who_comes_back_with_more_than_it_could_keep_tells_what_is_committed_by_it() -> None:
    hub = pool(2)
    view, ninth = hub.view, Version(9, 1)
    hub.handle(Disconnected("1"), 1.0)
    assert sent(hub.handle(hello("1", standing=standing(view, ninth)), 1.1), Freeze) == ["0", "1"]
    known = (SavedHolding(0, 0, ((0, 15),)),)
    for name in "01":
        hub.handle(Received(name, Standing(2, ninth, 9, (), (), view, holdings=known)), 1.2)
    assert hub.version == ninth
    assert hub.ledger.progress(0).committed == 15


def test_where_the_pool_has_learned_all_the_state_is_kept_though_another_data_set_is_left() -> None:
    """One that is only evaluated is never committed whole: no version comes after the last step."""
    hub = pool(1)
    hub.checkpoints.plan = Plan("kept", seconds=600.0)
    hub.handle(Received("0", Declared(replace(DATA, index=1))), 0.1)
    rest = (Contribution("0", 1.0, (Span(0, 0, 1, 20),)),)
    second = hub.handle(Received("0", Applied(Version(2, 1), "d", rest, True)), 1.0)
    assert sent(second + hub.handle(Ticked(), 1.1), Save) == ["0"]
    kept = Kept("kept/v2", Version(2, 1), ())
    hub.handle(Received("0", Saved(1, kept)), 1.2)
    hub.handle(Received("0", Applied(Version(3, 1), "d", ())), 1.3)
    assert not sent(hub.handle(Ticked(), 1.4), Save), "it learns from the other one now"


def test_where_the_first_checkpoint_of_a_resumed_run_is_damaged_it_goes_back_to_that_of_the_run_before() -> (
    None
):
    hub = Coordinator("r", 1)
    first, then = (Kept(f"kept/v{number}", Version(number, 1), ()) for number in (9, 12))
    hub.resume(first, (DATA,), (), "s")
    hub.checkpoints.plan = Plan("kept", versions=1)
    hub.handle(hello("0"), 0.0)
    assert hub.view is not None
    hub.handle(Received("0", Entered(hub.view.number, first.version)), 0.1)
    for number in (10, 11, 12):
        hub.handle(Received("0", Applied(Version(number, 2), "d", ())), 0.2)
    assert sent(hub.handle(Ticked(), 0.3), Save) == ["0"]
    hub.handle(Received("0", Saved(1, then)), 0.4)
    hub.handle(Received("0", Left(False, "it is killed")), 0.5)
    hub.handle(hello("1"), 0.6)
    told = hub.handle(Received("1", Unreadable(then.url, f"{then.url} is damaged", None)), 0.7)
    assert hub.version == first.version
    assert [a.text for a in told if isinstance(a, Note)] == [
        f"{then.url} is damaged; it goes on with version 9·1, from {first.url}"
    ]
    view = hub.view
    assert view is not None
    hub.handle(Received("1", Standing(view.number + 1, first.version, 9, (), (), view)), 0.8)
    hub.handle(Received("1", Unreadable(first.url, "that too", None)), 0.9)
    assert hub.state == "failed"


def test_a_name_that_is_a_long_number_is_no_place() -> None:
    hub = Coordinator("r", 2)
    welcome = hub.handle(hello("20261128191500123456789"), 0.0)
    assert [a.message.place for a in welcome if isinstance(a, Send) and isinstance(a.message, Welcome)] == [0]
    assert Coordinator.restore(hub.snapshot()).workers


def test_a_hub_that_is_back_does_not_take_itself_for_cut_off_before_anybody_could_be_heard() -> None:
    hub = Coordinator.restore(pool(2, lease=3.0).snapshot())
    assert "hub" not in notes(hub.handle(Ticked(), 100.0) + hub.handle(Ticked(), 102.0))
