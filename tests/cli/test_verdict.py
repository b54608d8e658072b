"""What is said of a storm, by the moments of its versions and of its faults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from manyhands.cli.verdict import capacity, goodput, recovery, verdict
from manyhands.core.digests import TURNED_OVER
from manyhands.core.messages import Dataset, Span, Version
from manyhands.core.testimony import Adopted, Concluded, Partitioned, Testimonies
from manyhands.engines.chaos import Injector
from manyhands.hub.journal import EventRow, VersionRow
from manyhands.hub.summary import History


def row(number: int, at: float, samples: float = 10.0) -> VersionRow:
    return VersionRow(number, 1, at, 1.0, "d", samples, {"loss": 1.0 / number}, {"0": samples}, {}, 2)


def history(versions: Sequence[VersionRow], events: Sequence[EventRow] = ()) -> History:
    return History("run", 0.0, 99.0, False, None, versions, events, ())


class Nobody:
    def workers(self) -> dict[str, int]:
        return {}

    def hub(self) -> None:
        return None

    def port(self, _: str) -> None:
        return None


def injected(
    done: Sequence[dict[str, object]], alive: Sequence[tuple[float, int, float]], said: Path | None = None
) -> Injector:
    injector = Injector(Nobody(), (), said, 0)
    injector.done, injector.alive = list(done), list(alive)
    return injector


def fault(at: float, kind: str, failed: str = "") -> dict[str, object]:
    return {"at": at, "kind": kind, "who": "0", "pid": 1, "seconds": 0.0, "failed": failed}


def test_goodput_counts_what_was_committed_between_two_moments() -> None:
    versions = [row(1, 5.0), row(2, 6.0), row(3, 7.0), row(4, 8.0), row(5, 12.0, 40.0)]
    assert goodput(versions, 7.0, 12.0) == pytest.approx(50 / 5)
    assert goodput(versions, 8.5, 13.0) == pytest.approx(40 / 4.5)
    assert goodput(versions, 12.0, 16.0) == 0.0
    assert goodput([], 1.0, 1.0) == 0.0


def test_recovery_is_the_longest_wait_for_a_version_between_two_faults() -> None:
    versions = [row(number, at) for number, at in enumerate((1.0, 2.0, 3.0, 6.0, 7.0, 8.0, 8.5), 1)]
    assert recovery([2.5, 6.5, 9.0], versions) == {"median": 2.0, "worst": 3.0}
    assert recovery([9.0, 9.5], versions) == {"median": 0.5, "worst": 0.5}, "that wait is not over yet"
    assert recovery([3.0, 5.0, 20.0], versions[:3]) == {"median": 16.0, "worst": 17.0}
    assert recovery([9.0, 9.5], []) == {"median": 0.5, "worst": 0.5}
    assert recovery([9.0], versions) is None


def test_capacity_is_who_could_work_up_to_the_end() -> None:
    seen = [(1.0, 4, 4.0), (2.0, 4, 3.0), (3.0, 3, 3.0), (4.0, 4, 3.0), (9.0, 0, 0.0)]
    assert capacity(injected([], seen), until=4.0) == pytest.approx(13 / 16)
    assert capacity(injected([], []), until=4.0) == 1.0


def told(at: float = 0.0) -> Testimonies:
    """Two workers that hold versions 1 to 6 a second before the hub hears of it."""
    partitioned = Partitioned(Dataset(0, 60, 10, 1, "dynamic", 0))
    held = [
        Adopted(
            number - 1.0 + at, Version(number, 1), "d", (Span(0, 0, 10 * number - 10, 10 * number),), 2, 1
        )
        for number in range(1, 7)
    ]
    return {7: (partitioned, *held, Concluded()), 8: (partitioned, *held, Concluded())}


def test_samples_digests_and_moments_are_those_that_the_workers_wrote_down() -> None:
    done = [fault(2.5, "kill"), fault(3.5, "cut", "needs root")]
    injector = injected(done, [(0.5, 2, 2.0), (2.5, 1, 1.0), (5.0, 2, 2.0)])
    found = verdict(history([row(n, float(n)) for n in range(1, 7)]), injector, None, told(), 60.0)
    assert found["samples"] == {
        "committed": 60,
        "total": 60,
        "lost": 0,
        "twice": 0,
        "unreached": 0,
        "by": "the workers",
    }
    assert found["digests"]["equal"]
    assert found["done"] == {"kill": 1}
    assert found["not_done"] == {"needs root": 1}
    assert found["counts"]["versions"][0] == [0.0, 2, 1]
    assert found["counts"]["processes"][1] == [2.5, 1, 1.0]
    assert found["recovery"] == {"median": 1.0, "worst": 1.0}
    assert found["sound"]


def test_what_comes_after_the_storm_is_not_of_its_goodput() -> None:
    injector = injected([], [(0.0, 2, 2.0), (9.0, 2, 0.0)])
    rows = [*(row(n, float(n)) for n in range(1, 6)), row(6, 6.0, 1000.0)]
    found = verdict(history(rows), injector, None, told(), seconds=4.0)
    assert (found["goodput"], found["capacity"]) == (pytest.approx(10.0), 1.0)


def test_a_version_that_the_ledger_has_and_no_worker_held_is_not_sound() -> None:
    injector = injected([], [(0.0, 2, 2.0)])
    held = {pid: each[:-2] for pid, each in told().items()}
    found = verdict(history([row(n, float(n)) for n in range(1, 7)]), injector, None, held, 60.0)
    assert (found["samples"]["lost"], found["digests"]["unwitnessed"], found["sound"]) == (10, 1, False)


def test_flips_are_counted_as_done_as_shown_and_as_found() -> None:
    flipped = told()[8]
    other = [Adopted(t.at, t.version, "x", t.spans, 2, 1) if t == flipped[3] else t for t in flipped]
    evicted = EventRow(1, 3.0, "evicted", "1", "worker 1 was evicted: its digest differs")
    resigned = EventRow(2, 5.0, "left", "0", f"worker 0 left: {TURNED_OVER}")
    injector = injected([fault(1.5, "corrupt"), fault(4.5, "corrupt")], [(0.0, 2, 2.0)])
    rows = [row(n, float(n)) for n in range(1, 7)]
    found = verdict(history(rows, [evicted, resigned]), injector, None, {**told(), 8: other}, 60.0)
    assert found["flipped"] == {"done": 2, "shown": 1, "found": 2}
    assert found["sound"]


def test_a_run_whose_workers_write_nothing_has_the_ledgers_word() -> None:
    injector = injected([fault(2.5, "kill")], [(0.0, 2, 2.0), (6.0, 2, 2.0)])
    calm = history([row(n, n / 2) for n in range(1, 9)])
    found = verdict(history([row(n, float(n)) for n in range(1, 7)]), injector, calm, {}, 60.0)
    assert (found["samples"]["by"], found["samples"]["lost"], found["digests"]) == ("the ledger", None, None)
    assert (found["undisturbed"], found["ratio"]) == (pytest.approx(20.0), pytest.approx(0.5))
    assert found["counts"]["versions"][0] == [1.0, 2, 1]
