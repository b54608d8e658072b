"""A worker's place in the pool, from joining to leaving, as a hub sees it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from stand_in_hub import PATIENCE, StandInHub

from manyhands.core.messages import (
    Acknowledged,
    Applied,
    Asked,
    Beat,
    Declared,
    Evicted,
    Hello,
    Leased,
    Left,
    Member,
    Opened,
    Ready,
    Refuse,
    Span,
    Version,
    View,
)
from manyhands.errors import (
    ConfigurationError,
    DataError,
    HubUnreachable,
    MachineError,
    ProtocolError,
    UserError,
)
from manyhands.sharing.strategy import EveryStep, LocalSGD
from manyhands.worker import session
from manyhands.worker.batches import Ended, Idle, declare
from manyhands.worker.driving import Outcome, driver_for
from manyhands.worker.session import REPEATS, Session
from manyhands.worker.settings import Settings
from manyhands.worker.stopping import StopRule

NOBODY = Member("nobody", "nobody", "127.0.0.1", 1)


class Script:
    """One worker's script: a model of one array, and its steps."""

    def __init__(self, hub: StandInHub) -> None:
        self.session = Session(Settings(hub=hub.url, token="a token", name="w"))
        self.params = {"w": np.ones(3, np.float32)}
        self.driver = driver_for(self.params, None, EveryStep())

    def share(self) -> None:
        self.session.share(self.driver, EveryStep())

    def step(self) -> None:
        gradients = self.driver.average({"w": np.full(3, 0.5, np.float32)})
        self.params["w"] -= gradients["w"]
        self.driver.step()


@pytest.fixture
def script(hub: StandInHub) -> Iterator[Script]:
    script = Script(hub)
    try:
        yield script
    finally:
        script.session.leave(finished=False, why="the test is over")


def opening(hub: StandInHub, number: int = 1) -> threading.Thread:
    """Open a view of the `number`th incarnation alone, as soon as it is ready for one."""

    def opens() -> None:
        member = hub.member(number)
        hub.wait_for(Ready, member.incarnation)
        view = View(number, (member,))
        hub.say(member.incarnation, Opened(view, 0, (member.incarnation,), "alone", Version(0, 0)))

    thread = threading.Thread(target=opens)
    thread.start()
    return thread


def share_alone(hub: StandInHub, script: Script) -> None:
    """The first view is the script's alone."""
    opened = opening(hub)
    script.share()
    opened.join()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_member_alone_commits_each_step_and_reports_what_it_is_made_of(
    hub: StandInHub, script: Script
) -> None:
    me = hub.member()
    assert (script.session.rank, script.session.size, script.session.view) == (0, 1, 0)
    script.session.declare(declare(0, 8, batch_size=4))
    assert hub.wait_for(Declared).dataset.length == 8
    share_alone(hub, script)
    assert script.session.view == 1

    def lease() -> None:
        hub.wait_for(Asked)
        hub.say(me.incarnation, Leased(0, 0, (Span(0, 0, 0, 8),)))

    leasing = threading.Thread(target=lease)
    leasing.start()
    assert script.session.take(0, 4) == (Span(0, 0, 0, 4),)
    leasing.join()
    assert script.session.peek(0, 4) == (Span(0, 0, 4, 8),)
    script.session.progress.log("loss", 2.0)
    script.step()
    applied = hub.wait_for(Applied)
    assert applied.version == Version(1, 1)
    assert applied.contributions is not None
    assert [(c.weight, c.spans, c.metrics) for c in applied.contributions] == [
        (4.0, (Span(0, 0, 0, 4),), {"loss": (2.0, 1.0)})
    ]
    assert script.session.committed(0) == 4
    assert script.session.progress.newest == {"loss": 2.0}
    np.testing.assert_array_equal(script.params["w"], np.full(3, 0.5, np.float32))


def test_where_nothing_counts_the_script_ends_with_the_reason_and_the_remedy(
    hub: StandInHub, script: Script
) -> None:
    share_alone(hub, script)
    infinite = {"w": np.full(3, np.inf, np.float32)}
    script.driver.average(infinite)
    script.driver.average(infinite)
    script.step()
    script.driver.average(infinite)
    script.driver.average(infinite)
    remedy = r"because of an infinity in the gradient of w: give a GradScaler.*also=\[scaler\]"
    with pytest.raises(UserError, match=remedy):
        script.driver.average(infinite)


def test_an_evicted_worker_joins_again_as_a_new_incarnation_that_holds_nothing(
    hub: StandInHub, script: Script
) -> None:
    me = hub.member()
    script.session.declare(declare(0, 8, batch_size=4))
    share_alone(hub, script)
    hub.say(me.incarnation, Leased(0, 0, (Span(0, 0, 0, 8),)), Evicted("it was silent"))
    until(lambda: script.session.view == 0)
    gradients = script.driver.average({"w": np.ones(3, np.float32)})
    assert not gradients["w"].any()
    opened = opening(hub, 2)
    script.driver.step()
    opened.join()
    assert hub.wait_for(Hello, number=2).incarnation != me.incarnation
    assert script.session.view == 2
    assert script.session.peek(0, 8) == ()
    hub.wait_for_end(me.incarnation)
    script.step()
    assert hub.wait_for(Applied).version == Version(1, 2)


def test_who_has_lost_its_place_heals_at_its_next_step_however_long_a_round_lasts(
    hub: StandInHub, script: Script
) -> None:
    strategy = LocalSGD(1_000)
    script.driver = driver_for(script.params, None, strategy)
    opened = opening(hub)
    script.session.share(script.driver, strategy)
    opened.join()
    script.driver.step()
    hub.say(hub.member().incarnation, Evicted("it was silent"))
    until(lambda: script.session.view == 0)
    opened = opening(hub, 2)
    script.driver.step()
    opened.join()
    assert script.session.view == 2


def test_a_worker_evicted_before_it_shares_a_model_joins_again(hub: StandInHub, script: Script) -> None:
    hub.say(hub.member().incarnation, Evicted("it was silent"))
    opened = opening(hub, 2)
    script.share()
    opened.join()
    assert script.session.view == 2


def test_a_worker_that_is_evicted_again_and_again_gives_up_with_the_reason(
    hub: StandInHub, script: Script
) -> None:
    def evict() -> None:
        for number in range(1, 4):
            member = hub.member(number)
            hub.wait_for(Ready, member.incarnation)
            hub.say(member.incarnation, Evicted("its clock is odd"))

    evicts = threading.Thread(target=evict)
    evicts.start()
    with pytest.raises(ConfigurationError, match=r"3 times while it joined.*its clock is odd"):
        script.share()
    evicts.join()


def test_a_worker_told_between_two_rounds_that_it_is_replaced_hears_of_it_in_the_next(
    hub: StandInHub, script: Script
) -> None:
    me = hub.member()
    share_alone(hub, script)
    away = Opened(View(2, (me, NOBODY)), 5, ("nobody",), "it is behind", Version(5, 1))
    hub.say(me.incarnation, away)
    until(lambda: script.session.view == 2)
    for segment in range(len(script.driver.layout.segments)):
        script.session.ready(segment)
    assert script.session.finish(b"") == Outcome("replaced")


def test_a_version_to_which_nothing_counts_leaves_the_combined_vector_to_those_who_send_it(
    hub: StandInHub, script: Script
) -> None:
    share_alone(hub, script)
    script.driver.combined[:] = 7
    assert script.session.finish(b"", "NaN in the gradient") == Outcome("committed")
    assert (script.driver.combined == 7).all()


def test_batches_are_not_to_be_had_before_a_model_is_shared(hub: StandInHub, script: Script) -> None:
    hub.member()
    script.session.declare(declare(0, 8))
    with pytest.raises(UserError, match=r"within `with pool\.share"):
        script.session.take(0, 4)


def lease(hub: StandInHub, *answers: tuple[Span, ...]) -> threading.Thread:
    """Answers what the member asks for, one request after the other."""

    def answer() -> None:
        for number, spans in enumerate(answers, 1):
            hub.wait_for(Asked, number=number)
            hub.say(hub.member().incarnation, Leased(0, 0, spans))

    answering = threading.Thread(target=answer)
    answering.start()
    return answering


def test_a_member_whom_nobody_needs_waits_for_data_and_takes_no_step_for_nothing(
    hub: StandInHub, script: Script
) -> None:
    script.session.declare(declare(0, 8, batch_size=4))
    share_alone(hub, script)

    answering = lease(hub, (Span(0, 0, 0, 4),), (), (), (Span(0, 0, 4, 8),))
    assert script.session.take(0, 4) == (Span(0, 0, 0, 4),)
    script.step()
    assert script.session.take(0, 4) == (Span(0, 0, 4, 8),)
    script.step()
    answering.join()
    assert script.session.take(0, 4) == Ended()


def test_a_loop_that_is_needed_and_never_learns_is_told_so(hub: StandInHub, script: Script) -> None:
    script.session.declare(declare(0, 8, batch_size=4))
    share_alone(hub, script)

    answering = lease(hub, (Span(0, 0, 0, 8),), ())
    script.session.take(0, 4)
    script.step()
    script.session.take(0, 4)
    assert [type(script.session.take(0, 4)) for _ in range(REPEATS)] == [Idle] * REPEATS
    with pytest.raises(UserError, match=r"data set 0 .* call backward\(\) for every batch"):
        script.session.take(0, 4)
    answering.join()


def test_a_script_that_adds_up_many_batches_is_given_as_many_again(
    hub: StandInHub, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "REPEATS", 2)
    script.session.declare(declare(0, 4, batch_size=1))
    share_alone(hub, script)

    answering = lease(hub, (Span(0, 0, 0, 4),), ())
    for batches in (3, 1):
        for _ in range(batches):
            script.session.take(0, 1)
        if batches == 3:
            script.step()
    assert [type(script.session.take(0, 1)) for _ in range(6)] == [Idle] * 6
    with pytest.raises(UserError, match="a batch again 6 times"):
        script.session.take(0, 1)
    answering.join()


@pytest.mark.parametrize(("kind", "error"), [("DataError", DataError), ("unheard of", ConfigurationError)])
def test_a_worker_that_the_hub_refuses_says_why_and_leaves_nothing_open(
    hub: StandInHub, kind: str, error: type[Exception]
) -> None:
    hub.refusal = Refuse(kind, "the lengths differ")
    with pytest.raises(error, match="the lengths differ"):
        Session(Settings(hub=hub.url))
    hub.wait_for_end(hub.member().incarnation)


def test_a_message_that_cannot_be_handled_ends_the_session_with_its_traceback_in_the_log(
    hub: StandInHub, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    me = hub.member()
    hub.say(me.incarnation, Leased(7, 0, (Span(7, 0, 0, 8),)))
    with pytest.raises(ProtocolError, match=r"a thread of worker w ended with KeyError: 7; its traceback"):
        script.share()
    assert "in leased" in caplog.text


def test_a_line_to_the_hub_that_falls_silent_breaks_when_the_lease_is_over(
    hub: StandInHub, script: Script
) -> None:
    hub.member()
    connection = script.session._incarnation._control._socket
    assert connection is not None
    limit = connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert limit == 5000  # the lease that the stand-in hub tells


def reached(hub: StandInHub, **settings: str) -> str:
    """The address that a worker of this hub tells; somebody listens there."""
    session = Session(Settings(hub=hub.url, token="a token", name="w", **settings))  # type: ignore[arg-type]
    try:
        member = hub.member()
        socket.create_connection((member.host, member.port), PATIENCE).close()
        return member.host
    finally:
        session.leave(finished=False, why="the test is over")


def own_address() -> str:
    """An address of this machine for others, "" where it has none; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:
        try:
            towards.connect(("198.51.100.1", 9))
        except OSError:
            return ""
        address: str = towards.getsockname()[0]
        return address


@pytest.mark.parametrize("address", ["127.0.0.1", own_address()])
def test_the_others_are_told_the_address_from_which_a_worker_reaches_the_hub(address: str) -> None:
    if not address:
        pytest.skip("this machine has no address but the loopback")
    hub = StandInHub(address)
    try:
        assert reached(hub) == address
    finally:
        hub.close()


@pytest.mark.parametrize(("host", "told"), [("127.0.0.2", "127.0.0.2"), ("0.0.0.0", "127.0.0.1")])
def test_an_address_of_this_machine_may_be_named_for_the_others(
    hub: StandInHub, host: str, told: str
) -> None:
    assert reached(hub, host=host) == told


def test_an_address_that_is_not_of_this_machine_is_refused_with_the_remedy(hub: StandInHub) -> None:
    with pytest.raises(MachineError, match=r"cannot listen on 198\.51\.100\.1:0: .*choose an address"):
        Session(Settings(hub=hub.url, host="198.51.100.1"))


def test_where_no_hub_answers_joining_says_so_and_leaves_nothing_open() -> None:
    before = threading.enumerate()
    with pytest.raises(HubUnreachable, match="start one with `manyhands hub`"):
        Session(Settings(hub="http://127.0.0.1:1", connect_seconds=0.0))
    assert threading.enumerate() == before


def test_leaving_says_goodbye_and_closes_everything(hub: StandInHub) -> None:
    session = Session(Settings(hub=hub.url))
    session.leave(finished=True, why="it has finished")
    hub.wait_for_end(hub.member().incarnation)
    assert hub.left() == [Left(True, "it has finished")]


def test_the_last_beat_before_the_goodbye_knows_all_that_was_read(hub: StandInHub) -> None:
    session = Session(Settings(hub=hub.url))
    hub.wait_for(Beat)
    session.declare(declare(0, 8))
    session.progress.holdings[0].leased([Span(0, 0, 0, 8)])
    session.progress.take(0, 8)
    session.leave(finished=False, why="enough")
    hub.wait_for_end(hub.member().incarnation)
    (_, beat), (_, left) = hub.heard[-2:]
    assert isinstance(beat, Beat)
    assert (beat.read, left) == (8, Left(False, "enough"))


def test_who_has_finished_leaves_when_the_hub_has_acknowledged_the_last_version(
    hub: StandInHub, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    share_alone(hub, script)
    script.step()

    def acknowledge() -> None:
        hub.wait_for(Applied, number=2)
        hub.say(hub.member().incarnation, Acknowledged(1))

    acknowledging = threading.Thread(target=acknowledge)
    acknowledging.start()
    script.session.leave(finished=True, why="it has finished")
    acknowledging.join()
    hub.wait_for_end(hub.member().incarnation)
    assert hub.left() == [Left(True, "it has finished")]
    assert not caplog.records


def test_who_leaves_without_the_hub_knowing_the_last_version_says_so(
    hub: StandInHub, script: Script, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_alone(hub, script)
    script.step()
    monkeypatch.setattr("manyhands.worker.session.LEAVE_SECONDS", 0.2)
    script.session.leave(finished=True, why="it has finished")
    assert "the hub is silent, and has not acknowledged the versions [1]" in caplog.text


def test_who_logged_something_that_no_version_has_says_so(
    hub: StandInHub, script: Script, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_alone(hub, script)
    script.session.progress.log("loss", 1.0)
    script.step()
    script.session.progress.log("loss", 0.5)
    script.session.progress.log("final_accuracy", 0.9)
    monkeypatch.setattr("manyhands.worker.session.LEAVE_SECONDS", 0.0)
    script.session.leave(finished=True, why="it has finished")
    assert "worker w logged final_accuracy after its last step" in caplog.text


@pytest.mark.parametrize(
    ("read", "stopped", "size", "warned"),
    [(4, False, 2, True), (4, True, 2, False), (8, False, 2, False), (4, False, 1, False)],
)
def test_who_leaves_while_others_have_data_left_is_told_once_that_their_model_will_be_another(
    hub: StandInHub,
    script: Script,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    read: int,
    stopped: bool,
    size: int,
    warned: bool,
) -> None:
    script.session.declare(declare(0, 8, batch_size=4))
    share_alone(hub, script)
    script.session.progress.holdings[0].leased([Span(0, 0, 0, 8)])
    script.session.take(0, read)
    if stopped:
        script.session.progress.rules.append(StopRule("loss", below=1.0))
        script.session.progress.log("loss", 0.5)
    script.step()
    monkeypatch.setattr(Session, "size", size)
    monkeypatch.setattr("manyhands.worker.session.LEAVE_SECONDS", 0.0)
    script.session.leave(finished=True, why="it has finished")
    told = [record.getMessage() for record in caplog.records if "trains on" in record.getMessage()]
    assert len(told) == warned
    if warned:
        assert told[0].startswith("worker w leaves with the model of version 1 while samples of data set 0")
        assert "pool.stop_when(...)" in told[0]


def test_data_that_was_only_evaluated_may_be_left(
    hub: StandInHub, script: Script, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.session.declare(declare(0, 8, batch_size=4))
    share_alone(hub, script)
    monkeypatch.setattr(Session, "size", 2)
    monkeypatch.setattr("manyhands.worker.session.LEAVE_SECONDS", 0.0)
    script.session.leave(finished=True, why="it has finished")
    assert "trains on" not in caplog.text
