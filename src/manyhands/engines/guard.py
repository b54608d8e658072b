"""A process that outlives a killed launcher just long enough to take its children with it.

Run as a script, with nothing of ours imported. It reads lines from its standard input: ``+PID`` when
the leader of a new session starts, ``-PID`` when that session has been cleared up. When the input ends,
because the launcher closed it or was killed, every session that is left gets SIGKILL.
"""

import contextlib
import os
import signal
import sys


def watch() -> None:
    """Holds until standard input ends; then no session that was announced is left."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    leaders: set[int] = set()
    for line in sys.stdin:
        if line.startswith("+"):
            leaders.add(int(line[1:]))
        else:
            leaders.discard(int(line[1:]))
    for leader in leaders:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    watch()
