"""How two members prove to each other, before any message, that they belong to the same run.

The listener greets with its nonce. The dialler answers with a nonce of its own, the run, who it is
and whom it means to reach, and proves that it knows the pool's token. The listener proves the same,
and sends one more byte as soon as its owner knows the dialler: it also says whether the listener reads
the memory that the dialler offers (`exchange.memory`). The token itself never travels.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import time
from io import BytesIO
from struct import Struct
from typing import Final, NamedTuple

from manyhands.errors import WireError
from manyhands.exchange.wire import MAGIC

NONCE_BYTES: Final = 16
PROOF_BYTES: Final = hashlib.sha256().digest_size
LONGEST_INCARNATION: Final = 128
LONGEST_OFFER: Final = 128
ADMITTED: Final = b"\x01"
ADMITTED_AND_READ: Final = b"\x02"
# magic, nonce, run, stream, lengths: who dials, who is meant, offer
_HELLO: Final = Struct(f"<4s{NONCE_BYTES}sQBBBB")


class Identity(NamedTuple):
    """What this process proves about itself: the run's hash, the pool's token, its incarnation.

    `offer` is what others need to read its memory; empty where it has none to share.
    """

    run: int
    token: str
    incarnation: str
    offer: bytes = b""


class Dialler(NamedTuple):
    """Who has dialled: its incarnation, which of its connections this is, what it offers of its memory."""

    incarnation: str
    stream: int
    offer: bytes


def secured(connection: socket.socket, *, dialled: bool) -> socket.socket:
    """The connection as it is used from here on: the one place where TLS goes around a socket."""
    del dialled
    return connection


def dial(
    connection: socket.socket, us: Identity, peer: str, step: float, pending: float, stream: int = 0
) -> bool:
    """The dialler's side; returns whether the listener reads our memory, once it has admitted us.

    `step` is the deadline of each step in seconds; `pending` is how much longer the listener may take
    to learn from its owner who we are. Raises WireError with the reason.
    """
    greeting = _receive(connection, len(MAGIC) + NONCE_BYTES, step, "a greeting")
    if greeting[: len(MAGIC)] != MAGIC:
        raise WireError(f"greeting: {greeting!r}, expected {MAGIC!r} and a nonce; no member listens there")
    theirs = greeting[len(MAGIC) :]
    ours = secrets.token_bytes(NONCE_BYTES)
    who, whom = us.incarnation.encode(), peer.encode()
    if max(len(who), len(whom)) > LONGEST_INCARNATION:
        raise WireError(f"incarnation: {max(who, whom, key=len)!r} is over {LONGEST_INCARNATION} bytes long")
    hello = _HELLO.pack(MAGIC, ours, us.run, stream, len(who), len(whom), len(us.offer))
    proof = _proof(us, b"dial", theirs, ours, who, whom, us.offer, stream)
    _send(connection, hello + who + whom + us.offer + proof, step)
    proof = _receive(connection, PROOF_BYTES, step, "a proof that it knows the token")
    if not hmac.compare_digest(proof, _proof(us, b"listen", ours, theirs, whom, who)):
        raise WireError("proof: the listener's token is not ours; give every worker the same MANYHANDS_TOKEN")
    word = _receive(connection, len(ADMITTED), step + pending, "word that it knows us as a member")
    return word == ADMITTED_AND_READ


def answer(connection: socket.socket, us: Identity, step: float) -> Dialler:
    """The listener's side; returns who has proved itself, and is yet to be admitted.

    Raises WireError with the reason.
    """
    ours = secrets.token_bytes(NONCE_BYTES)
    _send(connection, MAGIC + ours, step)
    fixed = _receive(connection, _HELLO.size, step, "an answer to the greeting")
    magic, theirs, run, stream, who_length, whom_length, offer_length = _HELLO.unpack(fixed)
    if magic != MAGIC:
        raise WireError(f"magic: {magic!r}, expected {MAGIC!r}; whoever dialled is no member")
    if run != us.run:
        raise WireError(f"run: {run:#018x}, expected {us.run:#018x}; whoever dialled belongs to another run")
    if not 0 < who_length <= LONGEST_INCARNATION or whom_length > LONGEST_INCARNATION:
        raise WireError(f"incarnation: {who_length} bytes, expected 1 to {LONGEST_INCARNATION}")
    if offer_length > LONGEST_OFFER:
        raise WireError(f"offer: {offer_length} bytes, expected at most {LONGEST_OFFER}")
    length = who_length + whom_length + offer_length + PROOF_BYTES
    rest = BytesIO(_receive(connection, length, step, "a proof that it knows the token"))
    who, whom, offer, proof = map(rest.read, (who_length, whom_length, offer_length, PROOF_BYTES))
    if not hmac.compare_digest(proof, _proof(us, b"dial", ours, theirs, who, whom, offer, stream)):
        raise WireError(
            f"proof: the token of {who!r} is not ours; give every worker the same MANYHANDS_TOKEN"
        )
    if whom != us.incarnation.encode():
        raise WireError(f"incarnation: {who!r} dialled {whom!r}, but here is {us.incarnation!r}")
    _send(connection, _proof(us, b"listen", theirs, ours, whom, who), step)
    return Dialler(who.decode(errors="replace"), stream, offer)


def admit(connection: socket.socket, step: float, *, reads: bool) -> None:
    """Tells the dialler that its messages are read from now on, and whether its memory is."""
    _send(connection, ADMITTED_AND_READ if reads else ADMITTED, step)


def _proof(
    us: Identity,
    role: bytes,
    challenge: bytes,
    own: bytes,
    who: bytes,
    whom: bytes,
    offer: bytes = b"",
    stream: int = 0,
) -> bytes:
    """HMAC-SHA256 under the token; every part has a fixed length or its length in front."""
    said = [role, challenge, own, us.run.to_bytes(8, "little"), who, whom, offer, bytes([stream])]
    text = b"".join(len(part).to_bytes(2, "little") + part for part in said)
    return hmac.digest(us.token.encode(), text, "sha256")


def _receive(connection: socket.socket, size: int, seconds: float, what: str) -> bytes:
    deadline = time.monotonic() + seconds
    got = b""
    while len(got) < size:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            part = connection.recv(size - len(got))
        except TimeoutError:
            raise WireError(f"{what} did not come within {seconds:g} s") from None
        except OSError as error:
            raise WireError(f"the connection broke where {what} was due: {error}") from error
        if not part:
            raise WireError(f"the connection was closed where {what} was due")
        got += part
    return got


def _send(connection: socket.socket, data: bytes, seconds: float) -> None:
    connection.settimeout(seconds)
    try:
        connection.sendall(data)
    except TimeoutError:
        raise WireError(f"the handshake could not be sent within {seconds:g} s") from None
    except OSError as error:
        raise WireError(f"the connection broke in the handshake: {error}") from error
