"""The hub's command line: `python -m manyhands.hub --folder runs/ID --run ID`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from manyhands.checkpoints.options import EVERY, KEEP, plan_of
from manyhands.errors import ConfigurationError, ManyhandsError
from manyhands.hub.address import read_address
from manyhands.hub.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one run; 0 when it finished or was stopped, 1 when it failed or cannot be served."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="hub: %(message)s", force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        settings = settings_from(arguments)
        # The web server takes a while to import: not for --help or a wrong option.
        from manyhands.hub.process import serve

        return serve(settings)
    except ManyhandsError as error:
        print(f"hub: {error}", file=sys.stderr, flush=True)
        return 1


def settings_from(arguments: Sequence[str] | None) -> Settings:
    """Parse the command line; the token comes from MANYHANDS_TOKEN or from an earlier hub of the folder."""
    parser = argparse.ArgumentParser("manyhands.hub", description="Serve one run: members, leases, rounds.")
    parser.add_argument(
        "--folder", type=Path, required=True, help="the run's folder; a killed hub takes up there"
    )
    parser.add_argument("--run", required=True, help="the run's id, which every worker names")
    parser.add_argument("--host", default=Settings.host, help="the address to listen on")
    parser.add_argument("--port", type=_port, default=0, help="0: a free one, or the earlier hub's")
    parser.add_argument("--expected", type=_positive(int), default=1, help="how many workers start together")
    parser.add_argument(
        "--lease", type=_positive(float), default=10.0, help="seconds of silence that end one"
    )
    parser.add_argument(
        "--journal-deadline", type=_positive(float), default=60.0, help="seconds to retry a full disk"
    )
    parser.add_argument("--checkpoint", default="", metavar="URL", help="where to keep the committed state")
    parser.add_argument("--checkpoint-every", default=EVERY, metavar="TIME", help=f"or 100versions ({EVERY})")
    parser.add_argument("--checkpoint-keep", type=int, default=KEEP, help=f"how many stay ({KEEP})")
    parser.add_argument("--resume", default="", metavar="URL", help="begin with the checkpoint there")
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="the run's folder is lost: begin with what its workers report",
    )
    parser.add_argument("--until-finished", action="store_true", help="end when the run has ended")
    values = vars(parser.parse_args(arguments))
    token = os.environ.get("MANYHANDS_TOKEN", "")
    if not token and (before := read_address(values["folder"])) is not None:
        token = before.token
    if not token:
        raise ConfigurationError("MANYHANDS_TOKEN is not set: give hub and workers the same secret in it")
    url, every, keep = (values.pop(f"checkpoint{which}") for which in ("", "_every", "_keep"))
    return Settings(token=token, checkpoints=plan_of(url, every, keep) if url else None, **values)


def _port(text: str) -> int:
    if not 0 <= int(text) < 65536:
        raise ValueError
    return int(text)


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not 0 < (value := kind(text)) < float("inf"):
            raise ValueError
        return value

    number.__name__ = f"positive {kind.__name__}"
    return number
