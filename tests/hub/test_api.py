"""REST and Prometheus: what those who look on are told."""

import asyncio
import math

import pytest
from hub_harness import Scripted, serving

from manyhands.core.decisions import Note, VersionRecord, ViewRecord
from manyhands.core.messages import Contribution, Member, Tensor, Version, View
from manyhands.hub.status import tensors_status

VIEW = View(1, (Member("inc-a", "0", "h", 1), Member("inc-b", "1", "h", 2)))
GUARDED = ["/api/run", "/api/workers", "/api/rounds", "/api/ledger", "/api/events", "/metrics"]


def fill(journal) -> None:
    """One view, three versions half a second apart, a fault."""
    journal.write(
        [(100.0, ViewRecord(VIEW, 0, "both ready")), (100.1, Note("lost", "1", "worker 1 is gone"))]
    )
    for number in (1, 2, 3):
        contributions = (
            Contribution("inc-a", 6.0, metrics={"loss": (6.0 * number, 6.0), 'odd"\n\\': (math.nan, 6.0)}),
            Contribution("inc-b", 0.0, rejected="not a number"),
        )
        record = VersionRecord(Version(number, 1), f"d{number}", contributions, 2)
        journal.write([(100.0 + number / 2, record)], started=b"90.0")


def test_every_path_but_healthz_wants_the_token(tmp_path):
    async def scenario():
        async with serving(tmp_path, Scripted()) as running:
            for path in GUARDED:
                for token in (None, "wrong"):
                    answer = await running.get(path, token)
                    assert answer.status_code == 401
                    assert "MANYHANDS_TOKEN" in answer.json()["error"]
                assert (await running.get(path)).status_code == 200
            assert (await running.ask("POST", "/api/stop", None)).status_code == 401
            assert (await running.get("/healthz", None)).json() == {"ok": True, "run": "run"}

    asyncio.run(scenario())


def test_rounds_are_the_newest_versions_with_the_newest_last(tmp_path):
    async def scenario():
        async with serving(tmp_path, Scripted()) as running:
            fill(running.hub.journal)
            rounds = (await running.get("/api/rounds?last=2")).json()
            assert [row["version"] for row in rounds] == [2, 3]
            assert rounds[-1] == {
                "version": 3,
                "view": 1,
                "at": 101.5,
                "seconds": 0.5,
                "metrics": {"loss": 3.0, 'odd"\n\\': None},
                "samples": 6.0,
                "digest": "d3",
                "contributors": {"0": 6.0},
                "rejected": {"1": "not a number"},
            }

    asyncio.run(scenario())


def test_events_come_after_the_id_one_knows(tmp_path):
    async def scenario():
        async with serving(tmp_path, Scripted()) as running:
            fill(running.hub.journal)
            (event,) = (await running.get("/api/events")).json()
            assert event == {"id": 1, "at": 100.1, "kind": "lost", "who": "1", "text": "worker 1 is gone"}
            assert (await running.get("/api/events?after=1")).json() == []

    asyncio.run(scenario())


@pytest.mark.parametrize("query", ["last=-1", "last=all", "last=10001", "last=" + "9" * 5000, "last=²"])
def test_a_number_that_is_none_is_named_in_a_400(tmp_path, query):
    async def scenario():
        async with serving(tmp_path, Scripted()) as running:
            answer = await running.get(f"/api/rounds?{query}")
            assert answer.status_code == 400
            assert "is not a whole number from 0 to 10000" in answer.json()["error"]

    asyncio.run(scenario())


@pytest.mark.parametrize("body", [b"enough", b'["why"]', b'{"why": 3}', b"x" * 70_000])
def test_a_stop_with_a_body_that_is_none_is_a_400_and_stops_nothing(tmp_path, body):
    async def scenario():
        async with serving(tmp_path, Scripted()) as running:
            answer = await running.ask("POST", "/api/stop", content=body)
            assert answer.status_code == 400
            assert "body" in answer.json()["error"]
            assert running.hub.coordinator.seen == []

    asyncio.run(scenario())


def test_prometheus_text_has_a_value_on_every_line_and_escapes_labels(tmp_path):
    async def scenario():
        async with serving(tmp_path, Scripted()) as running:
            fill(running.hub.journal)
            answer = await running.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            lines = answer.text.splitlines()
            values = [line for line in lines if not line.startswith("#")]
            for line in values:
                float(line.rpartition(" ")[2])
                assert line.startswith("manyhands_")
            assert 'manyhands_metric{name="loss"} 3' in lines
            assert 'manyhands_events_total{kind="lost"} 1' in lines
            assert "manyhands_up 1" in lines
            assert not any("nan" in line for line in values)

    asyncio.run(scenario())


def test_a_label_is_escaped():
    from manyhands.hub.metrics import _escaped

    assert _escaped('a"b\\c\nd') == r"a\"b\\c\nd"


def test_tensors_are_counted_in_their_own_dtypes():
    tensors = (Tensor("w", (3, 4), "float32"), Tensor("b", (4,), "bfloat16"), Tensor("s", (), "int64"))
    assert tensors_status(tensors) == {"count": 3, "elements": 17, "bytes": 48 + 8 + 8}
