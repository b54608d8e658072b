"""What the environment tells a worker."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from manyhands.errors import ConfigurationError
from manyhands.exchange.memory import this_machine

LONGEST_NAME = 100


@dataclass(frozen=True)
class Settings:
    """`hub` "" means a pool of one. `patience` stretches every time limit; seconds otherwise.

    `hub` may be several URLs with commas between: that of the hub, and of those that may take over from it.

    `host` is the address on which this worker listens for the others, and which they are told; "" means
    that from which it reaches the hub. Workers of one `machine` read each other's memory; "" is nobody
    else's. `grace` is how long after SIGTERM it may go on, to share what it has learned.
    """

    hub: str = ""
    token: str = ""
    run: str = ""
    name: str = "0"
    host: str = ""
    patience: float = 1.0
    machine: str = ""
    connect_seconds: float = 15.0
    grace: float = 8.0

    @classmethod
    def of(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """From MANYHANDS_HUB, _TOKEN, _RUN, _NAME, _HOST, _PATIENCE, _GRACE, _SHARED_MEMORY and _MACHINE.

        Workers of one host with different names in the last take each other to be on different hosts.
        Raises ConfigurationError for nonsense.
        """
        given = os.environ if environment is None else environment
        hub = given.get("MANYHANDS_HUB", "")
        if hub and not all(url.startswith(("http://", "https://")) for url in hub.split(",")):
            raise ConfigurationError(
                f"MANYHANDS_HUB is {hub!r}; give a URL like http://127.0.0.1:7000, or several with commas"
            )
        try:
            patience = float(given.get("MANYHANDS_PATIENCE") or 1.0)
        except ValueError:
            patience = 0.0
        if not 0 < patience < 1e6:
            raise ConfigurationError(
                f"MANYHANDS_PATIENCE is {given['MANYHANDS_PATIENCE']!r}; give a number above 0, 1 by default"
            )
        try:
            grace = float(given.get("MANYHANDS_GRACE") or cls.grace)
        except ValueError:
            grace = -1.0
        if not 0 <= grace < 1e6:
            raise ConfigurationError(
                f"MANYHANDS_GRACE is {given['MANYHANDS_GRACE']!r}; give a number of seconds, "
                f"{cls.grace:g} by default"
            )
        shared_memory = given.get("MANYHANDS_SHARED_MEMORY") or "1"
        if shared_memory not in ("0", "1"):
            raise ConfigurationError(
                f"MANYHANDS_SHARED_MEMORY is {shared_memory!r}; give 1, or 0 to send all through sockets"
            )
        name = given.get("MANYHANDS_NAME") or f"{socket.gethostname()}-{os.getpid()}"
        if len(name.encode()) > LONGEST_NAME:
            raise ConfigurationError(
                f"MANYHANDS_NAME has {len(name.encode())} bytes; give a name of at most {LONGEST_NAME}"
            )
        return cls(
            hub=hub,
            token=given.get("MANYHANDS_TOKEN", ""),
            run=given.get("MANYHANDS_RUN", ""),
            name=name,
            host=given.get("MANYHANDS_HOST", ""),
            patience=patience,
            machine=this_machine(given.get("MANYHANDS_MACHINE", "")) if shared_memory == "1" else "",
            connect_seconds=cls.connect_seconds * patience,
            grace=grace,
        )
