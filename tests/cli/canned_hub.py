"""A hub that always says the same over REST, in a thread of the test."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

TOKEN = "secret"
RUN = {
    "run": "r1",
    "state": "training",
    "why": "",
    "software": "0.1.0",
    "started": 1_795_000_000.0,
    "elapsed": 12.0,
    "expected": 2,
    "view": {"number": 1, "size": 2},
    "version": {"number": 7, "view": 1},
    "strategy": "DiLoCo(every=100)",
    "exchange": "shared memory",
    "tensors": {"count": 2, "elements": 10, "bytes": 40},
    "metrics": {"loss": 1.25},
    "samples": {
        "committed": 1024,
        "total": 4096,
        "per_second": 256.0,
        "read": 1100,
        "missing": 3072,
        "twice": 0,
    },
    "workers": {"live": 2, "contributing": 1},
    "bytes": {"sent": 12_300_000, "received": 12_300_000},
    "faults": 1,
    "time_left": 12.0,
    "datasets": [],
}
WORKERS = [
    {
        "incarnation": incarnation,
        "name": name,
        "state": state,
        "rank": rank,
        "pid": 1,
        "host": "127.0.0.1",
        "port": 1,
        "joined": joined,
        "last_heard": 12.0,
        "sent": 500,
        "received": 500,
        "read": 500,
        "committed": 256.0,
        "why": "",
    }
    for incarnation, name, state, rank, joined in [
        ("a", "0", "member", 0, 1.0),
        ("b", "1", "lost", None, 2.0),
        ("c", "1", "healing", None, 9.0),
    ]
]
ROUNDS = [
    {
        "version": 7,
        "view": 1,
        "at": 1_795_000_010.0,
        "seconds": 0.5,
        "metrics": {"loss": 1.25},
        "samples": 256.0,
        "digest": "d",
        "contributors": {"0": 256.0},
        "rejected": {"1": "not a number"},
    }
]
EVENTS = [
    {"id": 1, "at": 1_795_000_001.0, "kind": "joined", "who": "0", "text": "worker 0"},
    {"id": 2, "at": 1_795_000_002.0, "kind": "view", "who": "", "text": "view 1 opened"},
    {"id": 3, "at": 1_795_000_009.0, "kind": "lost", "who": "1", "text": "worker 1: its connection broke"},
]


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        after = int(parse_qs(asked.query).get("after", ["0"])[0])
        answers = {
            "/healthz": {"ok": True, "run": "r1"},
            "/api/run": RUN,
            "/api/workers": WORKERS,
            "/api/rounds": ROUNDS,
            "/api/events": [event for event in EVENTS if event["id"] > after],
        }
        known = asked.path == "/healthz" or self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.send_response((200 if asked.path in answers else 404) if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps(answers.get(asked.path) if known else {}).encode())

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def canned_hub() -> Iterator[str]:
    """The address of a hub that is there as long as the context."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
