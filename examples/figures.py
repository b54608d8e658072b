"""The table at the end of the demo."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BATCH = 8  # of gpt.py


def show(folder: Path, status: dict[str, Any], printed: Iterable[str]) -> bool:
    """Print what a run in `folder` came to; was every sample committed exactly once?

    `status` is the hub's last answer to /api/run, `printed` what the workers printed.
    """
    summary = json.loads((folder / "summary.json").read_text())
    samples, recovery = summary["samples"], (summary["recovery"] or [{}])[0]
    losses = re.search(r"validation loss before (\S+) after (\S+)", "\n".join(printed))
    every_step = samples["committed"] / BATCH * 2 * status["tensors"]["bytes"]
    table = Table(title="make demo", show_header=False)
    for name, value in (
        ("validation loss before / after", " / ".join(losses.groups()) if losses else "?"),
        ("samples per second", f"{samples['committed'] / summary['seconds']:.0f}"),
        (
            "bytes sent / every-step float32 would send",
            f"{summary['bytes']['sent'] / 1e6:.0f} MB / {every_step / 1e6:.0f} MB",
        ),
        ("seconds from the kill to the next commit", _seconds(recovery.get("next_commit"))),
        ("seconds until the killed worker contributed again", _seconds(recovery.get("back"))),
        ("samples read / committed", f"{samples['read']:,} / {samples['committed']:,}"),
        ("samples missing / counted twice", f"{samples['missing']} / {samples['twice']}"),
        ("report", str(folder / "report.html")),
    ):
        table.add_row(name, value)
    Console().print(table)
    return samples["missing"] == samples["twice"] == 0


def _seconds(value: float | None) -> str:
    return "not before the end" if value is None else f"{value:.2f}"
