"""Thousands of fault schedules, and a few nasty ones by hand, over the real decisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from manyhands.core.messages import View
from manyhands.testing.many_seeds import broken_seeds, story
from manyhands.testing.plan import Plan
from manyhands.testing.simulation import Simulation, simulate

PER_CHUNK = 1000
QUIET = Plan(3, 2, 30, 2, 2, 2, shares_buffer=True, faults=0, loss=0.0, twice=0.0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", range(5))
def test_every_invariant_holds_under_random_faults(chunk: int) -> None:
    broken = [seed for _, seed in broken_seeds(chunk * PER_CHUNK, PER_CHUNK) if seed is not None]
    assert not broken, f"{broken} break, the first like this:\n{story(broken[0])}"


def test_a_seed_gives_the_same_run_again() -> None:
    assert simulate(7) == simulate(7)


def when(sim: Simulation, condition: Callable[[], bool], then: Callable[[], None]) -> None:
    """Do something as soon as a condition holds, seen every 2 ms of virtual time."""

    def look() -> None:
        if condition():
            then()
        else:
            sim.clock.after(0.002, look)

    look()


def at(sim: Simulation, number: int) -> int:
    """How many living workers hold a version of this number or a later one."""
    return sum(w.alive and w.part.version.number >= number for w in sim.workers)


def reducer_dies_after_half_the_members_pulled(sim: Simulation) -> None:
    reducer = sim.workers[1]
    when(sim, lambda: 0 < at(sim, 3) < 3, lambda: sim.kill(reducer, 1.0))


def hub_dies_between_the_reports(sim: Simulation) -> None:
    when(
        sim,
        lambda: sim.hub.version.number < 3 <= max(w.part.version.number for w in sim.workers),
        lambda: sim.kill_hub(0.5),
    )


def two_die_in_one_round(sim: Simulation) -> None:
    def both() -> None:
        for worker in sim.workers[1:]:
            sim.kill(worker, 1.0)

    when(sim, lambda: at(sim, 2) == 3 and any(w.waiting for w in sim.workers), both)


def the_second_dies_while_the_view_changes(sim: Simulation) -> None:
    first, second = sim.workers[1:]
    when(sim, lambda: at(sim, 2) == 3, lambda: sim.kill(first, 2.0))
    when(sim, lambda: sim.hub.state == "changing", lambda: sim.kill(second, 1.5))


def a_member_returns_with_an_old_version(sim: Simulation) -> None:
    worker = sim.workers[2]

    def away() -> None:
        sim.cuts.cut(worker.name, "hub a", 3.0)
        sim.cuts.cut("hub a", worker.name, 3.0)
        worker.hang_up()

    when(sim, lambda: at(sim, 2) == 3, away)


def a_process_joins_while_a_round_reconciles(sim: Simulation) -> None:
    when(sim, lambda: at(sim, 2) == 3, lambda: sim.kill(sim.workers[2], 0.32))


def the_hub_dies_while_the_view_changes(sim: Simulation) -> None:
    when(sim, lambda: at(sim, 2) == 3, lambda: sim.kill(sim.workers[2], 1.0))
    when(sim, lambda: sim.hub.state == "changing", lambda: sim.kill_hub(0.5))


NASTY = [
    reducer_dies_after_half_the_members_pulled,
    hub_dies_between_the_reports,
    two_die_in_one_round,
    the_second_dies_while_the_view_changes,
    a_member_returns_with_an_old_version,
    a_process_joins_while_a_round_reconciles,
    the_hub_dies_while_the_view_changes,
]


@pytest.mark.parametrize("fault", NASTY, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("seed", range(5))
def test_the_run_finishes_with_every_sample_once_though(
    fault: Callable[[Simulation], None], seed: int
) -> None:
    sim = Simulation(seed, QUIET)
    fault(sim)
    assert sim.run().kind == "finished"


@pytest.mark.parametrize("seed", range(5))
def test_the_run_ends_as_lost_when_the_last_holder_of_a_version_dies(seed: int) -> None:
    sim = Simulation(seed, QUIET)

    def everyone() -> None:
        for worker in list(sim.workers):
            sim.kill(worker, 3.0)

    when(sim, lambda: sim.hub.version.number >= 2, everyone)
    assert sim.run().kind == "lost"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("workers", [2, 3])
def test_the_run_finishes_without_a_sample_at_which_scripts_raise_and_with_all_others(
    workers: int, seed: int
) -> None:
    sim = Simulation(seed, replace(QUIET, workers=workers, batch=4, bad=(7,)))
    assert sim.run().kind == "finished"
    assert [found.samples for found in sim.hub.ledger.quarantine] == [((7, 8),)]


@pytest.mark.parametrize("seed", range(5))
def test_the_run_finishes_with_every_sample_once_though_members_abstain(seed: int) -> None:
    sim = Simulation(seed, replace(QUIET, abstains=0.5))
    assert sim.run().kind == "finished"
    held = [made for made in sim.history.values() if any(c.weight == 0 for c in made.contributions)]
    assert held, "nobody has abstained"


@pytest.mark.parametrize("seed", range(5))
def test_who_is_told_to_end_leaves_when_what_it_has_read_is_committed(seed: int) -> None:
    sim = Simulation(seed, replace(QUIET, every=3))
    worker = sim.workers[1]

    def tell() -> None:
        worker.told = True

    when(sim, lambda: at(sim, 1) == 3 and bool(worker.holding.taken) and not worker.waiting, tell)
    assert sim.run().kind == "finished"
    parting = [c for made in sim.history.values() for c in made.contributions if c.leaving]
    assert [c.incarnation for c in parting if c.weight > 0] == [worker.incarnation]
    assert not worker.alive


def test_slices_are_cut_to_the_lines_once_they_are_known_and_nothing_is_lost() -> None:
    sim = Simulation(3, Plan(4, 2, 60, 2, 2, 2, shares_buffer=False, faults=0, loss=0.0, twice=0.0))
    for worker, line in zip(sim.workers, (1e6, 1e7, 1e7, 1e7), strict=True):
        worker.line = line
    seen = list[View]()
    when(sim, lambda: bool(sim.hub.view and sim.hub.view.shares), lambda: seen.append(sim.hub.view))
    sim.run()
    assert [(view.number, view.shares) for view in seen] == [(2, (0, 333, 333, 333))]
