"""The main job: four workers learn a small GPT, one is killed with -9 in the middle. `make demo` runs it."""

import json
import re
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from manyhands.cli.client import HubClient
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions
from manyhands.errors import ConfigurationError, HubUnreachable

SCRIPT = Path(__file__).with_name("gpt.py")
PARAMETERS_BYTES = 4 * 365_000
BATCH = 8


def seconds(value: float | None) -> str:
    return "not before the end" if value is None else f"{value:.2f}"


def main() -> int:
    losses: list[tuple[str, str]] = []

    def line(worker: str, stream: str, text: str) -> None:  # noqa: ARG001
        print(f"[{worker}] {text}", flush=True)
        if found := re.search(r"validation loss before (\S+) after (\S+)", text):
            losses.append((found[1], found[2]))

    options = LocalOptions(script=SCRIPT, args=(), workers=4)
    with LocalRun(options, lines=line, news=lambda text: print(text, flush=True)) as run:
        deadline, said, killed, status = time.monotonic() + 600, 0.0, False, {}
        outcome = None
        while outcome is None and time.monotonic() < deadline:
            try:
                outcome = run.wait(0.2)
                break
            except TimeoutError:
                pass
            try:
                status = HubClient(run.url, run.token).run()
            except (HubUnreachable, ConfigurationError):
                continue
            samples = status["samples"]
            if time.monotonic() - said > 5:
                said = time.monotonic()
                loss, live = status["metrics"].get("loss", 0.0), status["workers"]["live"]
                done = f"{samples['committed']:,} of {samples['total']:,} samples"
                print(f"version {status['version']['number']}, {done}, {live} workers, loss {loss:.3f}")
            if not killed and samples["total"] and samples["committed"] > 0.4 * samples["total"]:
                killed = True
                run.kill_worker("2")
                print("worker 2 is killed with -9")
        outcome = outcome or run.wait(60)
    summary = json.loads((Path(outcome.folder) / "summary.json").read_text())
    table = Table(title="make demo", show_header=False)
    samples, recovery = summary["samples"], (summary["recovery"] or [{}])[0]
    plain = samples["committed"] / BATCH * 2 * PARAMETERS_BYTES
    sent = summary["bytes"]["sent"]
    before, after = losses[0] if losses else ("?", "?")
    for name, value in (
        ("validation loss before / after", f"{before} / {after}"),
        ("samples per second", f"{samples['committed'] / summary['seconds']:.0f}"),
        ("bytes sent / every-step float32 would send", f"{sent / 1e6:.0f} MB / {plain / 1e6:.0f} MB"),
        ("seconds from the kill to the next commit", seconds(recovery.get("next_commit"))),
        ("seconds until the killed worker contributed again", seconds(recovery.get("back"))),
        ("samples read / committed", f"{status['samples']['read']:,} / {samples['committed']:,}"),
        ("samples missing / counted twice", f"{samples['missing']} / {samples['twice']}"),
        ("report", str(Path(outcome.folder) / "report.html")),
    ):
        table.add_row(name, value)
    Console().print(table)
    return outcome.code or int(samples["missing"] != 0 or samples["twice"] != 0)


if __name__ == "__main__":
    sys.exit(main())
