"""How large each member's slices are, so that a slow line carries few of the combined ones.

Of H hosts, one whose members combine the share f of a vector sends 1 + (H - 2)·f times the vector in a round:
what it contributes to the others' slices, and its own to each of them. As much comes in. So a round over
lines of unequal rates lasts as long as the slowest of (1 + (H - 2)·f) / rate.
"""

from __future__ import annotations

from collections.abc import Sequence

from manyhands.core.hosts import Hosts

WHOLE = 1000
"""The shares of a view are about so many parts."""

WORTH = 1.2
"""Shares change where rounds become shorter by so much: rates are measured, and never the same twice."""


def shares_of(rates: Sequence[float], hosts: Hosts) -> tuple[int, ...]:
    """The shares with which a round lasts shortest, by rank; () for equal ones.

    `rates`: bytes/s of the line of each member's host, as far as that member knows; 0 is not known.
    """
    lines = _lines(rates, hosts)
    count = len(lines)
    if count < 3 or not min(lines):
        return ()
    slowest = 1 / min(lines)
    wanted = [(slowest * line - 1) / (count - 2) for line in lines]
    if sum(wanted) < 1:  # everyone's line is full then
        lasts = (2 * count - 2) / sum(lines)
        wanted = [(lasts * line - 1) / (count - 2) for line in lines]
    total = sum(wanted)
    shares = [0] * len(rates)
    for ranks, want in zip(hosts.hosts, wanted, strict=True):
        for rank in ranks:
            shares[rank] = round(WHOLE * want / total / len(ranks))
    return tuple(shares)


def better(shares: Sequence[int], rates: Sequence[float], hosts: Hosts) -> bool:
    """Whether other shares than these would make rounds shorter, by as much as is worth a change of view."""
    best = shares_of(rates, hosts)
    return bool(best) and _lasts(shares, rates, hosts) >= WORTH * _lasts(best, rates, hosts)


def _lasts(shares: Sequence[int], rates: Sequence[float], hosts: Hosts) -> float:
    """Seconds that a round takes for each byte of the vector."""
    lines = _lines(rates, hosts)
    shares = shares or [1] * len(rates)
    parts = [sum(shares[rank] for rank in ranks) / sum(shares) for ranks in hosts.hosts]
    return max((1 + (len(lines) - 2) * part) / line for part, line in zip(parts, lines, strict=True))


def _lines(rates: Sequence[float], hosts: Hosts) -> list[float]:
    """The rate of each host's line: its members send over it at the same time."""
    return [sum(rates[rank] for rank in ranks) for ranks in hosts.hosts]
