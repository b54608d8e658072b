"""The control socket and the hub's loop: order, fairness, and what happens when a disk or a peer fails."""

import asyncio
import time
from contextlib import AsyncExitStack, suppress

import msgspec
import pytest
from hub_harness import Scripted, hello, serving, until
from websockets.exceptions import ConnectionClosed

from manyhands._version import __version__
from manyhands.core.coordinator import Coordinator
from manyhands.core.decisions import (
    Close,
    Compared,
    Connected,
    Disconnected,
    End,
    Note,
    Received,
    Send,
    Ticked,
    ViewRecord,
)
from manyhands.core.decisions import Journal as Write
from manyhands.core.messages import (
    STRANGER,
    Acknowledged,
    Asked,
    Beat,
    Evicted,
    Finished,
    Followed,
    Leased,
    Member,
    Refuse,
    Serving,
    View,
    Welcome,
    decode_answer,
    encode,
)
from manyhands.errors import JournalError, ProtocolError
from manyhands.hub.connections import FRAME_BYTES
from manyhands.hub.server import Limits

WELCOME = Welcome("run", 0, 2, 10.0, False)
VIEW = View(1, (Member("inc-a", "0", "h", 1),))
QUICK = Limits(retry=0.02, deadline=20.0)


def welcoming(event):
    """Welcomes whoever comes, and answers `Asked` with the number asked for."""
    if isinstance(event, Connected):
        return [Note("joined", event.hello.name, "came"), Send(event.hello.incarnation, WELCOME)]
    if isinstance(event, Received) and isinstance(event.message, Asked):
        return [
            Write(ViewRecord(VIEW, 0, "asked")),
            Send(event.incarnation, Acknowledged(event.message.samples)),
        ]
    return []


def asked(number: int) -> Asked:
    return Asked(0, 0, number)


def fill_the_disk(hub) -> None:
    """From now on the journal cannot grow, as on a full disk."""
    pages = hub.journal._db.execute("PRAGMA page_count").fetchone()[0]
    hub.journal._db.execute(f"PRAGMA max_page_count={pages}")
    hub.coordinator.blob = bytes(200_000)


def empty_the_disk(hub) -> None:
    hub.journal._db.execute("PRAGMA max_page_count=1000000")


def test_events_reach_the_coordinator_in_order_and_answers_come_back(tmp_path):
    async def scenario():
        async with serving(tmp_path, Scripted(welcoming)) as running:
            async with running.worker() as worker:
                assert await worker.hear() == WELCOME
                await worker.say(Beat(read=1), asked(1), asked(2))
                assert [await worker.hear(), await worker.hear()] == [Acknowledged(1), Acknowledged(2)]
            seen = running.hub.coordinator.seen
            await until(lambda: seen[-1] == Disconnected("inc-a"))
            assert seen == [
                Connected(hello()),
                Received("inc-a", Beat(read=1)),
                Received("inc-a", asked(1)),
                Received("inc-a", asked(2)),
                Disconnected("inc-a"),
            ]
            await until(lambda: running.hub.coordinator.ticks > 1)
            assert [row.kind for row in running.hub.journal.events()] == ["joined"]

    asyncio.run(scenario())


@pytest.mark.parametrize("token", [None, "another", "a secret!"])
def test_a_wrong_token_is_refused_with_the_remedy(tmp_path, token):
    async def scenario():
        async with serving(tmp_path, Scripted()) as running, running.socket(token) as worker:
            refusal = await worker.hear()
            assert isinstance(refusal, Refuse)
            assert refusal.kind == STRANGER
            assert "MANYHANDS_TOKEN" in refusal.why
            assert (await worker.closed())[0] == 1008
            assert running.hub.coordinator.seen == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("frame", "code", "sentence"),
    [
        (b"\xc1 no msgpack", 1003, "no control message"),
        (b"", 1003, "no control message"),
        (encode(WELCOME), 1003, "no control message"),
        (encode(hello()), 1003, "Hello twice"),
        ("text", 1003, "text frame"),
        (bytes(FRAME_BYTES + 1), 1009, "larger than"),
    ],
)
def test_a_bad_frame_closes_its_own_connection_with_one_line_and_harms_nobody_else(
    tmp_path, caplog, frame, code, sentence
):
    async def scenario():
        async with (
            serving(tmp_path, Scripted(welcoming)) as running,
            running.worker("inc-a", "good") as good,
            running.worker("inc-b", "bad") as bad,
        ):
            await good.hear()
            await bad.hear()
            with suppress(ConnectionClosed):  # the hub may close before it has read all of a large one
                await bad.socket.send(frame)
            assert (await bad.closed())[0] == code
            await until(lambda: Disconnected("inc-b") in running.hub.coordinator.seen)
            await good.say(asked(7))
            assert await good.hear() == Acknowledged(7)

    asyncio.run(scenario())
    lines = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert len(lines) == 1
    assert "worker bad" in lines[0]
    assert sentence in lines[0]


def test_a_connection_that_does_not_begin_with_hello_is_closed_and_reported_to_nobody(tmp_path, caplog):
    async def scenario():
        async with serving(tmp_path, Scripted()) as running, running.socket() as worker:
            await worker.say(Beat())
            code, why = await worker.closed()
            assert code == 1003
            assert why == "its first message was Beat, not Hello"
            assert running.hub.coordinator.seen == []

    asyncio.run(scenario())
    assert "first message was Beat" in caplog.text


def test_who_follows_another_hub_is_told_the_epoch_and_harms_no_connection_of_its_own(tmp_path):
    async def scenario():
        coordinator = Scripted(welcoming)
        async with serving(tmp_path, coordinator) as running, running.worker("inc-a") as worker:
            assert await worker.hear() == WELCOME
            followed = Followed("run", "inc-a", "0", 7)
            async with running.socket() as other:
                await other.say(followed)
                assert decode_answer(await other.socket.recv()) == Serving(coordinator.epoch)
                assert await other.closed() == (1000, "compared")
            await worker.say(asked(3))
            assert await worker.hear() == Acknowledged(3)
            assert coordinator.seen[1] == Compared(followed)

    asyncio.run(scenario())


def test_a_connection_that_says_nothing_is_closed_in_time(tmp_path):
    async def scenario():
        async with (
            serving(tmp_path, Scripted(), Limits(greeting=0.05)) as running,
            running.socket() as worker,
        ):
            assert await worker.closed() == (1003, "it said nothing for 0.05 s")

    asyncio.run(scenario())


def test_a_second_connection_of_an_incarnation_replaces_the_first_without_a_disconnect(tmp_path):
    async def scenario():
        async with serving(tmp_path, Scripted(welcoming)) as running, running.worker() as first:
            await first.hear()
            async with running.worker() as second:
                assert await second.hear() == WELCOME
                code, why = await first.closed()
                assert (code, why) == (1000, "a newer connection of this worker took its place")
                await second.say(asked(5))
                assert await second.hear() == Acknowledged(5)
                seen = running.hub.coordinator.seen
                assert Disconnected("inc-a") not in seen
            await until(lambda: seen[-1] == Disconnected("inc-a"))
            assert seen.count(Disconnected("inc-a")) == 1

    asyncio.run(scenario())


def test_an_order_for_a_connection_that_was_replaced_does_not_reach_the_new_one(tmp_path):
    """Even when both were handled before the journal could be written."""

    async def scenario():
        async with serving(tmp_path, Scripted(welcoming), QUICK) as running, running.worker() as first:
            await first.hear()
            fill_the_disk(running.hub)
            await first.say(asked(1))
            await until(lambda: running.hub.trouble)
            await first.say(asked(2))
            async with running.worker() as second:
                await asyncio.sleep(0)
                empty_the_disk(running.hub)
                assert await second.hear() == WELCOME
                await second.say(asked(3))
                assert await second.hear() == Acknowledged(3)

    asyncio.run(scenario())


def test_the_journal_is_written_before_a_worker_hears(tmp_path):
    async def scenario():
        async with serving(tmp_path, Scripted(welcoming)) as running, running.worker() as worker:
            await worker.hear()
            running.hub.coordinator.blob = b"newer"
            written = []
            write = running.hub.journal.write

            def spied(records, **state):
                write(records, **state)
                written.append(state["coordinator"])

            running.hub.journal.write = spied
            await worker.say(asked(1))
            assert await worker.hear() == Acknowledged(1)
            assert written[0] == b"newer"
            assert running.hub.journal.state("coordinator") == b"newer"
            assert len(running.hub.journal.views()) == 1

    asyncio.run(scenario())


def test_while_the_disk_is_full_nothing_is_sent_health_says_why_and_then_all_goes_on(tmp_path, caplog):
    async def scenario():
        async with serving(tmp_path, Scripted(welcoming), QUICK) as running, running.worker() as worker:
            await worker.hear()
            fill_the_disk(running.hub)
            await worker.say(asked(1))
            await until(lambda: running.hub.trouble)
            health = await running.get("/healthz", token=None)
            assert health.status_code == 503
            assert "full" in health.json()["why"]
            assert (await running.get("/api/run")).status_code == 200  # looking on still works
            handled = len(running.hub.coordinator.seen)
            await worker.say(asked(2), Beat())
            assert running.hub.journal.views() == []
            assert len(running.hub.coordinator.seen) == handled
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(worker.socket.recv(), 0.2)

            empty_the_disk(running.hub)
            assert [await worker.hear(), await worker.hear()] == [Acknowledged(1), Acknowledged(2)]
            assert (await running.get("/healthz", token=None)).json() == {"ok": True, "run": "run"}
            await until(lambda: running.hub.journal.kinds().get("hub") == 1)

    asyncio.run(scenario())
    assert (
        sum(
            "free some space" in record.getMessage()
            for record in caplog.records
            if record.levelname == "ERROR"
        )
        == 1
    )


def test_a_disk_that_stays_full_ends_the_loop_with_the_sentence(tmp_path):
    async def scenario():
        limits = Limits(retry=0.01, deadline=0.05)
        async with serving(tmp_path, Scripted(welcoming), limits) as running, running.worker() as worker:
            await worker.hear()
            fill_the_disk(running.hub)
            await worker.say(asked(1))
            with pytest.raises(JournalError, match=r"hub\.db cannot be written: .*full.*free some space"):
                await asyncio.wait_for(asyncio.shield(running.loop), 20)

    asyncio.run(scenario())


def test_a_hub_that_was_deaf_hears_what_was_said_before_it_judges_silence(tmp_path):
    """Suspended, or waiting for its disk: the beats that waited come first, the next tick later."""

    async def scenario():
        async with serving(tmp_path, Scripted(welcoming), QUICK) as running, running.worker() as worker:
            await worker.hear()
            order = []
            running.hub.coordinator.answer = lambda event: order.append(type(event)) or []
            await worker.say(Beat())
            await until(lambda: Received in order)
            order.clear()
            await worker.say(Beat())
            time.sleep(1.2)  # the whole process stands still, as under SIGSTOP
            await until(lambda: Ticked in order)
            assert order.index(Received) < order.index(Ticked)

    asyncio.run(scenario())


def test_a_worker_that_does_not_read_is_disconnected_with_a_note_and_others_are_served(tmp_path):
    big = Leased(0, 0, ())
    flood = Evicted("x" * 2**20)

    def answer(event):
        if isinstance(event, Received) and isinstance(event.message, Asked):
            return [Send("inc-b", flood)] * 20 + [Send("inc-a", big)]
        return welcoming(event)

    async def scenario():
        async with (
            serving(tmp_path, Scripted(answer), Limits(queued=50)) as running,
            running.worker("inc-a", "0") as reads,
            running.worker("inc-b", "1"),
        ):
            assert await reads.hear() == WELCOME
            gone = Disconnected("inc-b")
            while gone not in running.hub.coordinator.seen:
                await reads.say(asked(1))
                assert await reads.hear() == big
            (note,) = [row for row in running.hub.journal.events() if row.kind == "suspected"]
            assert note.who == "1"
            assert "does not read" in note.text
            await reads.say(asked(1))
            assert await reads.hear() == big

    asyncio.run(scenario())


def test_what_was_sent_before_a_close_arrives_before_it(tmp_path):
    def answer(event):
        if isinstance(event, Connected):
            orders = [Send("inc-a", Acknowledged(n)) for n in range(100)]
            return [*orders, Send("inc-a", Evicted("too old")), Close("inc-a", "too old")]
        return []

    async def scenario():
        async with serving(tmp_path, Scripted(answer)) as running, running.worker() as worker:
            heard = [await worker.hear() for _ in range(101)]
            assert heard[:100] == [Acknowledged(n) for n in range(100)]
            assert heard[100] == Evicted("too old")
            assert await worker.closed() == (1000, "too old")
            await until(lambda: running.hub.open == 0)
            assert running.hub.coordinator.seen == [Connected(hello())]  # whom it closed it knows to be gone

    asyncio.run(scenario())


def test_an_event_that_cannot_be_closes_the_connection_it_came_from_and_no_other(tmp_path):
    def answer(event):
        if isinstance(event, Received) and event.incarnation == "inc-b":
            raise ProtocolError("Asked before Declared; history: ...")
        return welcoming(event)

    async def scenario():
        async with (
            serving(tmp_path, Scripted(answer)) as running,
            running.worker("inc-a", "0") as good,
            running.worker("inc-b", "1") as bad,
        ):
            await good.hear()
            await bad.hear()
            await bad.say(asked(1))
            assert "Asked before Declared" in ((await bad.closed())[1] or "")
            await good.say(asked(2))
            assert await good.hear() == Acknowledged(2)
            assert running.hub.coordinator.seen.count(Disconnected("inc-b")) == 1
            assert running.hub.journal.kinds()["hub"] == 1

    asyncio.run(scenario())


def test_the_end_is_told_to_all_before_the_hub_is_over(tmp_path):
    def answer(event):
        if isinstance(event, Received):
            return [Send("inc-a", Finished("done")), Send("inc-b", Finished("done")), End(True, "done")]
        return []

    async def scenario():
        async with serving(tmp_path, Scripted(answer)) as running, AsyncExitStack() as stack:
            workers = [await stack.enter_async_context(running.worker(f"inc-{i}", i)) for i in "ab"]
            await until(lambda: len(running.hub.coordinator.seen) == 2)
            await workers[0].say(Beat())
            assert [await worker.hear() for worker in workers] == [Finished("done")] * 2
            await until(running.hub.over.is_set)
            assert running.hub.ended == End(True, "done")
            assert float(running.hub.journal.state("ended")) <= time.time()

    asyncio.run(scenario())


def test_when_the_run_is_over_the_samples_have_the_counters_of_the_last_beats(tmp_path):
    async def scenario():
        async with serving(tmp_path, Coordinator("run", 1)) as running, running.socket() as worker:
            await worker.say(msgspec.structs.replace(hello(), software=__version__))
            assert isinstance(await worker.hear(), Welcome)
            running.hub._sampled = running.hub._now() + 1000.0  # the second is not full
            await worker.say(Beat(sent=11, received=7, read=5))
            await until(lambda: running.hub.coordinator.workers["inc-a"].read == 5)
            running.hub.stop("enough")
            await until(running.hub.over.is_set)
            last = running.hub.journal.samples()[-1]
            assert (last.sent, last.received, last.read) == (11, 7, 5)
            assert running.hub.last_row() == []

    asyncio.run(scenario())


def test_a_step_of_the_clock_moves_no_lease(tmp_path, monkeypatch):
    async def scenario():
        async with serving(tmp_path, Scripted()) as running:
            coordinator = running.hub.coordinator
            await until(lambda: coordinator.ticks > 0)
            before, wall = coordinator.now, time.time
            monkeypatch.setattr(time, "time", lambda: wall() + 3600.0)
            ticks = coordinator.ticks
            await until(lambda: coordinator.ticks > ticks)
            assert coordinator.now - before < 1800.0

    asyncio.run(scenario())
