"""The section of a report on a storm: what `manyhands chaos` left in chaos.json."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import msgspec

from manyhands.hub.figures import duration, number
from manyhands.hub.journal import EventRow
from manyhands.hub.series import align, thin

_MOST_POINTS = 1000


class Fault(msgspec.Struct, frozen=True):
    """What the injector did, when, to whom, for how long; `failed`: why it could not."""

    at: float
    kind: str
    who: str
    seconds: float
    failed: str


class Counts(msgspec.Struct, frozen=True):
    """(time, processes, those that can work), and (time, contributions, those that were combined)."""

    processes: list[tuple[float, float, float]]
    versions: list[tuple[float, float, float]]


class Samples(msgspec.Struct, frozen=True):
    """`by` whose word."""

    lost: float | None
    twice: float | None
    by: str


class Digests(msgspec.Struct, frozen=True):
    """Versions of which they lie `apart`, and how many different `results` workers have ended with."""

    equal: bool
    apart: int
    results: int


class Storm(msgspec.Struct, frozen=True):
    """Of chaos.json what the report shows; times are Unix seconds."""

    faults: list[Fault]
    counts: Counts
    goodput: float
    undisturbed: float | None
    ratio: float | None
    capacity: float
    of_capacity: float | None
    recovery: dict[str, float] | None
    samples: Samples
    digests: Digests | None
    flipped: dict[str, int | None]
    loss: dict[str, float | None]


def read_storm(folder: Path) -> Storm | None:
    """What is in the folder's chaos.json; None where there was no storm, or it is of another release."""
    try:
        return msgspec.json.decode((folder / "chaos.json").read_bytes(), type=Storm)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def faults(storm: Storm) -> list[EventRow]:
    """What was done, as events."""
    return [
        EventRow(0, fault.at, fault.kind, fault.who, _words(fault))
        for fault in storm.faults
        if not fault.failed
    ]


def _words(fault: Fault) -> str:
    who = "the hub" if fault.who == "hub" else f"worker {fault.who}"
    return f"{who}, for {duration(fault.seconds)}" if fault.seconds else who


def counts(storm: Storm, began: float) -> tuple[list[Any], ...]:
    """Times, and at each how many could work, contributed, and were combined."""
    told = storm.counts

    def line(rows: list[tuple[float, float, float]], column: int) -> tuple[list[float], list[float]]:
        return thin([row[0] - began for row in rows], [row[column] for row in rows], _MOST_POINTS)

    return align(line(told.processes, 2), line(told.versions, 1), line(told.versions, 2))


def section(storm: Storm | None) -> str:
    """The section: a chart to be drawn, and what the storm cost; "" without a storm."""
    if storm is None:
        return ""
    body = "".join(
        f"<tr><th>{escape(what)}</th><td>{escape(ours)}</td><td>{escape(calm)}</td></tr>"
        for what, ours, calm in _rows(storm)
        if ours
    )
    head = "<tr><th></th><th>in the storm</th><th>undisturbed</th></tr>"
    return (
        '<section class="card wide"><h2>the storm</h2><div class="storm">'
        '<div><div class="chart" id="storm"></div><p class="key"></p></div>'
        f'<table class="beside">{head}{body}</table></div></section>'
    )


def _rows(storm: Storm) -> list[tuple[str, str, str]]:
    samples, digests, flipped = storm.samples, storm.digests, storm.flipped
    calm = storm.undisturbed is not None
    wait = storm.recovery
    bits = f"{flipped['done']}, {flipped['found']} found" if flipped["done"] else ""
    return [
        ("samples/s", number(storm.goodput), number(storm.undisturbed)),
        ("of the undisturbed", _share(storm.ratio), ""),
        ("of what could work", _share(storm.of_capacity), ""),
        ("processes that could work", _share(storm.capacity), "100 %" if calm else ""),
        ("longest wait for a version after a fault, median", duration(wait["median"]) if wait else "", ""),
        ("at worst", duration(wait["worst"]) if wait else "", ""),
        (f"samples lost / doubled, by {samples.by}", f"{number(samples.lost)} / {number(samples.twice)}", ""),
        ("digests of each version", "" if digests is None else _agreement(digests), ""),
        ("flipped bits", bits, ""),
        ("last loss", number(storm.loss["storm"]), number(storm.loss["undisturbed"])),
    ]


def _agreement(digests: Digests) -> str:
    return "equal" if digests.equal else f"{digests.apart} apart, {digests.results} models at the end"


def _share(part: float | None) -> str:
    return "" if part is None else f"{100 * part:.1f} %"
