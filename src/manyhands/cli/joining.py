"""`manyhands join`: one supervised worker for a hub elsewhere."""

from __future__ import annotations

import secrets
import socket
from dataclasses import replace
from pathlib import Path

from manyhands.cli.client import HubClient
from manyhands.cli.running import supervise
from manyhands.engines.options import LocalOptions


def join_hub(
    hub: str,
    token: str | None,
    name: str | None,
    host: str | None,
    script: Path,
    arguments: tuple[str, ...],
    max_restarts: int,
    patience: float,
    plain: bool,
) -> int:
    """Raises `HubUnreachable` where no hub answers, before anything is started."""
    client = HubClient(hub, token or "")
    name = name or f"{socket.gethostname()}-{secrets.token_hex(2)}"
    options = LocalOptions(
        script,
        arguments,
        max_restarts=max_restarts,
        patience=patience,
        names=(name,),
        env={"MANYHANDS_HOST": host} if host else {},
        hub=client.url,
        token=token,
    )
    options.check()
    run = client.run_id()
    client.run()  # a wrong token is better refused here than by every start of the script
    return supervise(replace(options, run=run), plain)
