"""What a worker keeps for a hub that is away."""

import pytest

from manyhands.core.messages import Applied, Contribution, Version, encode
from manyhands.worker import unacknowledged
from manyhands.worker.unacknowledged import Unacknowledged


def applied(number: int) -> Applied:
    return Applied(Version(number, 1), "", (Contribution("a", 8.0, rejected="x" * 100),))


def test_however_long_the_hub_is_away_the_newest_versions_fit_into_a_hello(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = len(encode(applied(1)))
    monkeypatch.setattr(unacknowledged, "MOST_BYTES", 3 * size)
    kept = Unacknowledged()
    for number in range(1, 10):
        kept.add(applied(number))
    assert [each.version.number for each in kept.all] == [7, 8, 9]
    kept.acknowledged(8)
    for number in (10, 11):
        kept.add(applied(number))
    assert [each.version.number for each in kept.all] == [9, 10, 11]
    monkeypatch.setattr(unacknowledged, "MOST_BYTES", 0)
    kept.add(applied(12))
    assert [each.version.number for each in kept.all] == [12]


def test_a_version_that_the_hub_knows_or_that_came_from_elsewhere_is_none_of_them() -> None:
    kept = Unacknowledged()
    kept.add(applied(1))
    found = kept.adopted(1, "digest", last=True)
    assert found is not None
    assert (found.digest, found.last, kept.all) == ("digest", True, (found,))
    kept.acknowledged(1)
    assert kept.adopted(1, "digest", last=False) is None
    assert kept.all == ()
