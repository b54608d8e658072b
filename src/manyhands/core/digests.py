"""Same bits (I2): the digests that members report of a version, compared."""

from __future__ import annotations

from manyhands.core.messages import Version

KEPT = 8

TURNED_OVER = "a bit turned over in the memory that holds the last version"
"""What a member says of itself that finds other bits there than it wrote, before anybody compares."""


class Digests:
    """What each member reported of the last few versions."""

    def __init__(self, saved: tuple[tuple[Version, dict[str, str]], ...] = ()) -> None:
        self._reports: dict[Version, dict[str, str]] = dict(saved)

    def save(self) -> tuple[tuple[Version, dict[str, str]], ...]:
        """Plain values for the journal."""
        return tuple(self._reports.items())

    def forget(self, before: int) -> None:
        """Versions below this number do not count any more: who reported them may have healed since."""
        self._reports = {version: r for version, r in self._reports.items() if version.number >= before}

    def report(
        self, version: Version, incarnation: str, digest: str, members: tuple[str, ...]
    ) -> dict[str, str]:
        """Add one; once all members (in rank order) have reported: who differs, and how.

        Right is what most have, and what the lowest rank has in a tie.
        """
        reports = self._reports.setdefault(version, {})
        reports[incarnation] = digest
        if not members or any(member not in reports for member in members):
            self.forget(version.number - KEPT)
            return {}
        del self._reports[version]
        found = [reports[member] for member in members]
        right = max(found, key=lambda d: (found.count(d), -found.index(d)))
        return {
            member: f"its version {version} has digest {reports[member]}, the others have {right}"
            for member in members
            if reports[member] != right
        }
