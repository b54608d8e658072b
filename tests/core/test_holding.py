"""What one worker knows of the data."""

from __future__ import annotations

from manyhands.core.holding import Holding, SavedHolding
from manyhands.core.messages import Dataset, Span


def test_what_a_donor_knows_to_be_committed_is_not_read_again() -> None:
    """A member that lags heals into the version that holds its own proposal (I3)."""
    holding = Holding(Dataset(0, 20, 2, 1, "dynamic", 0))
    holding.leased([Span(0, 0, 3, 9)])
    holding.take(3)
    holding.propose()
    holding.reclaim()
    holding.load(SavedHolding(0, 0, ((0, 6),)))
    assert holding.held() == (Span(0, 0, 6, 9),)
