"""What a worker of these tests does to itself at a named place of a round, and what it says of each version.

Imported by the training script. `FAULTS` holds words like ``1:sending:10`` or ``0:committed:12:hub``: the
worker of that name (or ``any``), the place, the version from which on, and the deed (``kill`` without one).
Each is done once, by whichever incarnation comes there first: the link ``done`` and the fault points to its
name then. The file ``faults`` may hold more, also later.
"""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from manyhands.checkpoints import store
from manyhands.core import rounds
from manyhands.core.messages import Applied, Offered, Version, decode_for_peer
from manyhands.core.rounds import Participant
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import Kind
from manyhands.sharing import parts
from manyhands.worker import waiting
from manyhands.worker.control import Control

PLACES = {
    "ready": "nothing of its contribution has left",
    "sending": "one peer has its part of the contribution, the others have not",
    "proposing": "its contribution has left, its proposal has not",
    "combining": "its slice is combined, nobody has it",
    "combined": "one peer has its combined slice, the others have not",
    "committed": "it holds the new version, nobody has been told",
    "donating": "a joiner has asked it for the state",
    "giving": "it has given a joiner a part of the state, and owes it another",
    "healing": "it has fetched the state, nobody has been told",
    "saving": "it has kept the state but for the manifest",
}

waiting.STEP_SECONDS = float(os.environ.get("STEP_SECONDS", waiting.STEP_SECONDS))
_name = os.environ["MANYHANDS_NAME"]
_folder = Path(os.environ["FAULT_FOLDER"])
_faults = os.environ["FAULTS"]
_incarnation = ""
_told_of: set[tuple[str, Version]] = set()
_given: Counter[tuple[str, int]] = Counter()
_seal = store._sealed
_participant_handle, _send, _send_all, _report = (
    Participant.handle,
    Exchange.send,
    Exchange.send_all,
    Control.send,
)


class Ballast:
    """So many bytes of the state that are no parameters, the same on all workers."""

    def __init__(self) -> None:
        self.bytes = np.random.default_rng(1).integers(
            256, size=int(os.environ.get("BALLAST", "0")), dtype=np.uint8
        )

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self.bytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bytes = state["bytes"].copy()


def at(place: str, version: int) -> None:
    """This worker is at this place, with this version."""
    for fault in _planned(place):
        _, _, since, deed = (*fault.split(":"), "kill")[:4]
        if version < int(since):
            continue
        try:
            (_folder / f"done {fault}").symlink_to(_name)
        except FileExistsError:
            continue
        if deed == "hub":
            os.kill(json.loads((_folder / "run" / "hub.json").read_text())["pid"], signal.SIGKILL)
        else:
            os.kill(os.getpid(), signal.SIGSTOP if deed == "stop" else signal.SIGKILL)


def _planned(place: str) -> list[str]:
    """What this worker is still to do to itself there."""
    ordered = _folder / "faults"
    faults = [*_faults.split(), *(ordered.read_text().split() if ordered.exists() else ())]
    own = (fault for fault in faults if fault.startswith((f"{_name}:{place}:", f"any:{place}:")))
    return [fault for fault in own if not (_folder / f"done {fault}").is_symlink()]


def say(*words: object) -> None:
    """One line in one write, so that threads do not mix theirs."""
    os.write(1, (" ".join(map(str, ("trace", _incarnation, *words))) + "\n").encode())


def _handle(self: Participant, event: rounds.Event) -> list[rounds.Action]:
    global _incarnation
    _incarnation = self.incarnation
    place = {rounds.Ready: "ready", rounds.Propose: "proposing", rounds.Combined: "combining"}.get(
        type(event)
    )
    if place is not None and self.phase == "member":
        at(place, self.version.number)
    if isinstance(event, rounds.Installed):
        at("healing", event.version.number)
    actions = _participant_handle(self, event)
    if isinstance(event, rounds.Installed) and self.view is not None and self.phase == "member":
        say("healed", event.version.number, self.view.number)
    for action in actions:
        if isinstance(action, rounds.Commit):
            spans = [
                [span.dataset, span.epoch, span.start, span.stop]
                for contribution in action.contributions
                for span in contribution.spans
            ]
            say("commit", action.version.number, action.version.view, json.dumps(spans))
    return actions


def _sent(self: Exchange, peer: str, header: Any, payload: Any = b"") -> bool:
    if header.kind is Kind.SNAPSHOT:
        if _given[peer, header.base] == 1 and _planned("giving"):
            self.drain(time.monotonic() + 5.0)
            at("giving", header.base)
        _given[peer, header.base] += 1
    if header.kind is Kind.MESSAGE and _planned("donating"):
        message = decode_for_peer(payload)
        if isinstance(message, Offered):
            at("donating", message.version.number)
    queued = _send(self, peer, header, payload)
    if header.kind is Kind.CONTRIBUTION and _planned("sending"):
        self.drain(time.monotonic() + 5.0)
        at("sending", header.base)
    return queued


def _sent_all(self: Exchange, peers: Any, header: Any, payload: Any = b"") -> Any:
    if header.kind is Kind.COMBINED and _planned("combined"):
        first, *_ = peers
        _send(self, first, header, payload)
        self.drain(time.monotonic() + 5.0)
        at("combined", header.base)
    return _send_all(self, peers, header, payload)


def _told(self: Control, message: Any) -> None:
    if isinstance(message, Applied) and (_incarnation, message.version) not in _told_of:  # not said again
        _told_of.add((_incarnation, message.version))
        say("applied", message.version.number, message.version.view, message.digest)
        at("committed", message.version.number)
    _report(self, message)


def _sealed(manifest: Any) -> bytes:
    at("saving", manifest.version.number)
    return _seal(manifest)


parts.PART_BYTES = 4096  # so that a small state has many
Participant.handle = _handle  # type: ignore[method-assign]
Exchange.send, Exchange.send_all = _sent, _sent_all  # type: ignore[method-assign]
Control.send = _told  # type: ignore[method-assign]
store._sealed = _sealed
