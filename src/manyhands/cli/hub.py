"""`manyhands hub`: the hub in this process, and the line with which others join it."""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import threading
from pathlib import Path

from manyhands.engines.folder import HubFile, new_run_id, read_hub_file
from manyhands.errors import ConfigurationError

_EVERYWHERE = ("0.0.0.0", "::", "")


def serve(
    host: str,
    port: int,
    expected: int,
    folder: Path | None,
    lease: float,
    more: tuple[str, ...] = (),
    take_over: str = "",
) -> int:
    """Runs the hub, with `more` arguments, until the run or somebody ends it; returns its exit code."""
    from manyhands.hub.main import main

    folder = folder or Path("runs") / new_run_id()
    before = read_hub_file(folder)
    if take_over:
        if "MANYHANDS_TOKEN" not in os.environ:
            raise ConfigurationError(
                f"the workers of run {take_over} know its token: set MANYHANDS_TOKEN to it"
            )
        more = (*more, "--take-over")
    if "MANYHANDS_TOKEN" not in os.environ:
        os.environ["MANYHANDS_TOKEN"] = before.token if before is not None else secrets.token_urlsafe(24)
    written = before.written if before is not None else 0
    threading.Thread(target=_announce, args=(folder, host, written), name="announce", daemon=True).start()
    run = take_over or (before.run if before is not None else folder.resolve().name)
    return main(
        [
            *("--folder", str(folder), "--run", run),
            *("--host", host, "--port", str(port), "--expected", str(expected), "--lease", str(lease)),
            *more,
        ]
    )


def _announce(folder: Path, host: str, written: int, seconds: float = 60.0) -> None:
    """Waits until the hub is ready, then prints how to reach it."""
    pause = threading.Event()
    for _ in range(round(seconds / 0.02)):
        told = read_hub_file(folder)
        if told is not None and told.pid == os.getpid() and told.written != written:
            print(announcement(told, folder, host), flush=True)
            return
        pause.wait(0.02)


def announcement(told: HubFile, folder: Path, host: str) -> str:
    """Address, token, and the line that joins, with an address that others can reach where there is one."""
    url = told.url
    if host in _EVERYWHERE:
        url = f"http://{_address_of_this_machine()}:{url.rpartition(':')[2]}"
    join = f"MANYHANDS_TOKEN={shlex.quote(told.token)} manyhands join --hub {url} train.py"
    return f"run     {told.run} in {folder}\nhub     {url}\ntoken   {told.token}\njoin    {join}"


def _address_of_this_machine() -> str:
    """The address of the interface that leads out; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: an address for documentation
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
