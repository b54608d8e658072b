"""The outside of a hub, for tests of what starts one: hub.json, the journal's tables, and an orderly end.

Anything in the environment's STAND_IN_HUB is why it does not start.
"""

import argparse
import json
import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("--folder", "--run", "--expected", "--lease"):
    parser.add_argument(name, required=True)
options = parser.parse_args()
if os.environ.get("STAND_IN_HUB"):
    sys.exit(f"hub: {os.environ['STAND_IN_HUB']}")

folder = Path(options.folder)
over = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: over.set())
with sqlite3.connect(folder / "hub.db") as journal:
    journal.execute("CREATE TABLE IF NOT EXISTS versions(number INT, at REAL, contributors TEXT)")
with (folder / "hubs.txt").open("a") as file:
    print(os.getpid(), file=file)
told = {"url": "http://127.0.0.1:9", "pid": os.getpid(), "run": options.run, "port": 9}
new = folder / "hub.json.new"
new.write_text(json.dumps({**told, "token": os.environ["MANYHANDS_TOKEN"]}))
new.replace(folder / "hub.json")
over.wait(120.0)
(folder / "report.html").touch()
(folder / "summary.json").write_text('{"versions": 0}')
