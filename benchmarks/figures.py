"""Figures on their way from a script to the benchmark that started it, as lines that it prints."""

from __future__ import annotations

import json
from typing import Any

MARK = "measured "


def measured(**figures: Any) -> None:
    """In a script: hand figures to the benchmark that started it."""
    print(MARK + json.dumps(figures), flush=True)


def understood(line: str) -> dict[str, Any] | None:
    """The figures in a line that a script printed, if it holds any."""
    if not line.startswith(MARK):
        return None
    found: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return found
