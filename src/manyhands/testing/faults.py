"""What befalls a simulation: each fault picks its victims with the simulation's own random numbers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manyhands.testing.simulation import Simulation

LONGEST_CUT = 8.0
GRACE = 3.0


def kill(sim: Simulation) -> None:
    """A worker is killed, and started again."""
    sim.kill(sim.random.choice(sim.workers), 0.2 + sim.random.random() * 2.0)


def tell_to_end(sim: Simulation) -> None:
    """A worker hears SIGTERM, shares what it has learned, and goes; it is killed where that takes long."""
    worker = sim.random.choice(sim.workers)
    sim.note(f"TELL {worker.incarnation}")
    worker.told = True
    sim.later(GRACE, lambda: sim.kill(worker, sim.random.random()))


def hang_up(sim: Simulation) -> None:
    """A control connection breaks, and both ends hear of it."""
    worker = sim.random.choice(sim.workers)
    sim.note(f"CUT {worker.name}")
    worker.hang_up()


def flip(sim: Simulation) -> None:
    """A bit of a worker's state turns over."""
    worker = sim.random.choice(sim.workers)
    if worker.chain:
        sim.names += 1
        worker.flipped = sim.names
        sim.note(f"FLIP {worker.incarnation} at {worker.version}")


def sever(sim: Simulation) -> None:
    """Two workers do not reach each other, or one of them not the other, while each reaches the hub."""
    one, other = sim.random.choice(sim.workers).name, sim.random.choice(sim.workers).name
    if one != other:
        _cut(sim, one, other)


def sever_hub(sim: Simulation) -> None:
    """A worker is not heard by a hub, does not hear it, or both."""
    _cut(sim, sim.random.choice(sim.workers).name, sim.random.choice([*sim.hubs]))


def restart_hub(sim: Simulation) -> None:
    """A hub is killed, and comes back with its journal."""
    sim.kill_hub(0.1 + sim.random.random() * 1.5)


def lose_power(sim: Simulation) -> None:
    """The machine of a hub loses its power, and the hub comes back with a journal that lacks its end."""
    hub = sim.newest
    hub.lose_power()
    sim.bring(0.1 + sim.random.random() * 1.5, hub.revive)


def replace_hub(sim: Simulation) -> None:
    """A hub is killed, and another one takes over."""
    sim.kill_hub(0.1 + sim.random.random() * 1.5, keeps_journal=False)


def return_hub(sim: Simulation) -> None:
    """A hub is killed, another one takes over, and the first comes back with its journal."""
    hub = sim.newest
    replace_hub(sim)
    sim.bring(0.2 + sim.random.random() * 6.0, hub.revive)


def divide(sim: Simulation) -> None:
    """Some of the workers are cut off from their hub, and another one takes over beside it."""
    hub, other = sim.newest, sim.take_over()
    for worker in sim.workers:
        if sim.random.random() < 0.5:
            _cut(sim, worker.name, hub.place)
        elif other is not None and sim.random.random() < 0.5:
            _cut(sim, worker.name, other.place)


def stop_hub(sim: Simulation) -> None:
    """A hub is stopped and woken, and another one may take over meanwhile."""
    seconds = sim.random.random() * LONGEST_CUT
    sim.sleep(sim.newest, seconds)
    if sim.random.random() < 0.7:
        sim.later(sim.random.random() * seconds, sim.take_over)


def _cut(sim: Simulation, one: str, other: str) -> None:
    """Nothing gets from the one to the other, or the other way round, or both, for a time."""
    seconds, ways = sim.random.random() * LONGEST_CUT, sim.random.choice((1, 2, 3))
    sim.note(f"SEVER {one}{(' -> ', ' <- ', ' - ')[ways - 1]}{other} for {seconds:.1f} s")
    if ways & 1:
        sim.cuts.cut(one, other, seconds)
    if ways & 2:
        sim.cuts.cut(other, one, seconds)


FAULTS: dict[Callable[[Simulation], None], int] = {
    kill: 6,
    tell_to_end: 2,
    hang_up: 4,
    flip: 2,
    sever: 2,
    sever_hub: 3,
    restart_hub: 2,
    lose_power: 1,
    replace_hub: 2,
    return_hub: 1,
    divide: 1,
    stop_hub: 1,
}
"""How often each is drawn."""


def draw(random: Random) -> Callable[[Simulation], None]:
    return random.choices([*FAULTS], [*FAULTS.values()])[0]
