"""The lighthouse of torchft for `benchmarks.storm`: says where it is, until its input is closed."""

import os
import sys

from torchft.coordination import LighthouseServer

lease = int(1000 * float(os.environ["BENCH_LEASE"]))
server = LighthouseServer(
    bind="127.0.0.1:0", min_replicas=1, join_timeout_ms=lease, quorum_tick_ms=100, heartbeat_timeout_ms=lease
)
print(server.address(), flush=True)
sys.stdin.read()
