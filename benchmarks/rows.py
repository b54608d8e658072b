"""What a benchmark prints: rows of figures, each with its peer, the machine's limit, and what is asked."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

CANNOT_RUN = 3
WIDTH = 160  # of a table that goes into a file or a pipe


class CannotRun(Exception):
    """This benchmark cannot run here; the text says why, in one sentence."""


@dataclass(frozen=True)
class Row:
    """One figure.

    `ratio` is ours divided by the peer's, measured side by side: the median over repetitions, of which
    half lie between `low` and `high`. `limit` is what the machine itself allows, in `unit`. `most_ratio`,
    `most` and `least` are what is asked of ratio and value.
    """

    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    repetitions: int = 1
    limit: float | None = None
    limited_by: str | None = None
    most_ratio: float | None = None
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is what is asked; None where nothing is."""
        asked = [(self.ratio, self.most_ratio), (self.value, self.most)]
        known = [value <= most for value, most in asked if value is not None and most is not None]
        known += [self.value >= self.least] if self.least is not None else []
        return all(known) if known else None

    @property
    def asked(self) -> str:
        if self.most_ratio is not None:
            return f"≤ {self.most_ratio:g}×"
        if self.least is not None:
            return f"≥ {self.least:g} {self.unit}"
        return f"≤ {self.most:g} {self.unit}" if self.most is not None else ""


def against(
    name: str,
    ours: Sequence[float],
    peer: str,
    peers: Sequence[float],
    unit: str = "s",
    *,
    most_ratio: float | None = None,
    limit: float | None = None,
    limited_by: str | None = None,
    most: float | None = None,
    note: str = "",
) -> Row:
    """A row of repetitions in pairs: ours and the peer's next to each other, so that noise hits both."""
    ratios = [mine / other for mine, other in zip(ours, peers, strict=True)]
    low, high = quartiles(ratios)
    return Row(
        name=name,
        value=statistics.median(ours),
        unit=unit,
        peer=peer,
        peer_value=statistics.median(peers),
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        repetitions=len(ratios),
        limit=limit,
        limited_by=limited_by,
        most_ratio=most_ratio,
        most=most,
        note=note,
    )


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Half of the values lie between the two; needs one value at least."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def kept(without: Sequence[float], beside: Sequence[float]) -> str:
    """Which part of a pace is left: the inverse of the ratio of seconds, as its median over pairs."""
    part = 1 / statistics.median(mine / other for mine, other in zip(beside, without, strict=True))
    return f"{100 * part:.1f} %"


def say(text: str) -> None:
    """A line of progress, beside the figures."""
    print(text, file=sys.stderr, flush=True)


def main(
    description: str,
    measure: Callable[[argparse.Namespace], Iterable[Row]],
    options: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> int:
    """The command line of a benchmark: its rows as a table, or one JSON object a line.

    Every benchmark has `--quick`, the smallest setting that still prints every kind of row.
    Returns 0, or `CANNOT_RUN` where it cannot run here.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Figures are medians; ratio is ours divided by the peer's, measured side by side in this run. "
        "Exit code 3: it cannot run here, and says why.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each row, as it comes")
    parser.add_argument("--quick", action="store_true", help="the smallest setting: proves that it runs")
    options(parser)
    given = parser.parse_args()
    rows = []
    try:
        for row in measure(given):
            rows.append(row)
            if given.json:
                print(
                    json.dumps({**asdict(row), "met": row.met}, ensure_ascii=False, allow_nan=False),
                    flush=True,
                )
    except CannotRun as why:
        say(str(why))
        return CANNOT_RUN
    if not given.json:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(table(rows))
    return 0


def table(rows: Iterable[Row]) -> Table:
    """One line for each row, without the columns that none of them fills."""
    titles = ("what", "ours", "peer", "ratio", "asked", "limit", "")
    lines = [cells(row) for row in rows]
    filled = [place for place in range(len(titles)) if any(line[place] for line in lines)]
    found = Table(*(titles[place] for place in filled), box=None, header_style="bold")
    for line in lines:
        found.add_row(*(line[place] for place in filled))
    return found


def cells(row: Row) -> tuple[str, ...]:
    spread = f" ({row.low:.3g} to {row.high:.3g})" if row.low is not None and row.repetitions > 1 else ""
    return (
        row.name,
        amount(row.value, row.unit) + (spread if row.ratio is None else ""),
        f"{amount(row.peer_value, row.unit)} {row.peer}" if row.peer_value is not None else "",
        f"{row.ratio:.3f}×{spread}" if row.ratio is not None else "",
        row.asked + {True: " ✓", False: " ✗", None: ""}[row.met],
        f"{amount(row.limit, row.unit)} {row.limited_by or ''}" if row.limit is not None else "",
        row.note,
    )


def amount(value: float, unit: str) -> str:
    """Three digits that count: 0.0123 s is 12.3 ms."""
    if unit == "s" and abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"
