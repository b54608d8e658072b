"""For each strategy: workers killed at every phase of a round, the hub killed at every phase and a sleep that
is longer than the lease, and kills of all who have a part in it while a worker heals."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from invariants import assert_all, assert_learned_as_much
from training import CODED, STRATEGIES, Training

from manyhands.engines import hub_process

pytestmark = pytest.mark.faults

PHASES = {"ready": 1, "sending": 1, "proposing": 2, "combining": 2, "combined": 1, "committed": 0}
"""And the rank of who is killed there. What a version is made of is told by the one of rank 0."""
PACE = 0.08  # so that the data last for all of it
SLEEPS = ("sending", "proposing", "combined", "combining")


@pytest.mark.parametrize("strategy", [*STRATEGIES, *CODED])
def test_workers_killed_at_every_phase_in_turn_cost_nothing(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    with Training(tmp_path, strategy, pace=PACE) as training:
        training.until_committed(100)
        killed = Counter[str]()
        for number, (phase, rank) in enumerate(PHASES.items()):
            name = training.name_of(rank)
            killed[name] += 1
            training.order(f"{name}:{phase}:{number}")
            training.until_back(name, incarnations=killed[name] + 1)
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.restarts == {name: killed[name] for name in "012"}
    assert Counter(fault["who"] for fault in ran.summary["faults"]) == killed


@pytest.mark.parametrize(("strategy", "asleep_at"), list(zip([*STRATEGIES, CODED[1]], SLEEPS, strict=True)))
def test_hubs_killed_at_every_phase_cost_nothing_and_who_sleeps_through_its_lease_writes_nothing(
    tmp_path: Path, undisturbed, monkeypatch: pytest.MonkeyPatch, strategy: str, asleep_at: str
) -> None:
    monkeypatch.setattr(hub_process, "_LONGEST_DELAY", 0.5)  # the sixth start comes as soon as the second
    with Training(tmp_path, strategy, pace=PACE, lease=2.5) as training:
        training.until_committed(100)
        for number, phase in enumerate(PHASES):
            training.order(f"{number % 3}:{phase}:{number}:hub")
            training.until("the hub's return", lambda back=number + 1: len(training.events("hub")) >= back)
            before = training.committed()
            training.until("more samples", lambda before=before: training.committed() > before + 50)
        assert not any(map(training.events, ("lost", "left-out", "rolled-back"))), "it stops nobody"

        training.order(f"1:{asleep_at}:9:stop")
        training.until("the end of the lease", lambda: training.events("lost"))
        version = training.status()["version"]["number"]
        training.until("a round without it", lambda: training.status()["version"]["number"] > version + 1)
        (sleeper,) = training.incarnations("1")
        os.kill(sleeper["pid"], signal.SIGCONT)
        training.until_back("1")
        first, second = training.incarnations("1")
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.hub_restarts == len(PHASES)
    assert ran.outcome.restarts == {"0": 0, "1": 0, "2": 0}
    assert [event.who for event in ran.of_kind("lost", "left-out")] == ["1"]
    assert "silent" in first["why"]
    assert second["pid"] == first["pid"]
    spoken = {trace.incarnation: trace.numbers("applied") for trace in ran.traces}
    evicted_at = next(number for number, _, who in ran.views[1:] if first["incarnation"] not in who)
    assert all(view < evicted_at for _, _, view in spoken[first["incarnation"]])


@pytest.mark.parametrize("strategy", [*STRATEGIES, CODED[1]])
def test_who_heals_its_donor_and_the_hub_killed_meanwhile_cost_nothing(
    tmp_path: Path, undisturbed, strategy: str
) -> None:
    with Training(tmp_path, strategy, pace=PACE) as training:
        training.until_committed(100)
        training.plan("1:healing:1")
        training.order("1:ready:1")
        training.until_back("1", incarnations=3)

        training.plan("any:donating:2")  # what is small may come from one donor alone
        training.order("1:ready:2")
        donor = training.until_done("any:donating:2")
        training.until_back(donor)
        training.until_back("1", incarnations=4)

        training.plan("1:healing:3:hub")
        training.order("1:proposing:3")
        training.until_done("1:healing:3:hub")
        training.until_back("1", incarnations=5)
        ran = training.end()
    assert_all(ran)
    assert_learned_as_much(ran, undisturbed(strategy))
    assert ran.outcome.restarts == {"0": 0, "2": 0} | {donor: 1, "1": 4}
    assert ran.outcome.hub_restarts == 1
