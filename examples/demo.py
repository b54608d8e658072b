"""The main job: four workers learn a small GPT, one is killed with -9 in the middle. `make demo` runs it."""

import sys
import time
from pathlib import Path
from typing import Any

from figures import show

from manyhands.cli.client import HubClient
from manyhands.cli.live import Glance, PlainScreen
from manyhands.engines.local import LocalRun
from manyhands.engines.options import LocalOptions
from manyhands.errors import ManyhandsError

SCRIPT = Path(__file__).with_name("gpt.py")
SECONDS = 600.0


def follow(run: LocalRun, screen: PlainScreen) -> dict[str, Any]:
    """Show the run until it ends, and kill worker 2 on the way; the status of the hub as it last was."""
    status: dict[str, Any] = {}
    killed, deadline = False, time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            run.wait(0.2)
            break
        except TimeoutError:
            pass
        try:
            status = HubClient(run.url, run.token).run()
        except ManyhandsError:
            continue  # it ends just now
        screen.glance(Glance(status))
        if not killed and status["samples"]["committed"] > 0.4 * status["samples"]["total"] > 0:
            killed = True
            run.kill_worker("2")
            screen.say("worker 2 is killed with -9")
    return status


def main() -> int:
    screen, printed = PlainScreen(), list[str]()

    def line(worker: str, stream: str, text: str) -> None:
        screen.line(worker, stream, text)
        printed.append(text)

    with LocalRun(LocalOptions(SCRIPT, workers=4), line, screen.say) as run:
        status = follow(run, screen)
        outcome = run.wait(60)
    exactly_once = show(outcome.folder, status, printed)
    return outcome.code or int(not exactly_once)


if __name__ == "__main__":
    sys.exit(main())
