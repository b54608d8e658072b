"""What workers print: lines cut from streams, and tracebacks held back until it is known what they mean."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_LONGEST = 64 * 1024
_MOST_HELD = 2000
_OPENING = re.compile(
    r'Traceback \(most recent call last\):|  File ".*", line \d+|  \+ Exception Group Traceback|usage: '
)
_FRAME = re.compile(r"\s*(\| )*\s*File \"")
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|\d+")


class Lines:
    """Cuts a stream of bytes into lines of text. What a carriage return overwrites is not shown."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._partial = ""

    def feed(self, data: bytes) -> list[str]:
        """The lines that are complete now; a line beyond 64 Ki characters is cut there."""
        *complete, self._partial = (self._partial + self._decoder.decode(data)).split("\n")
        lines = [_visible(line) for line in complete]
        if len(self._partial) > _LONGEST:
            self._partial = _visible(self._partial)
        while len(self._partial) > _LONGEST:
            lines.append(self._partial[:_LONGEST])
            self._partial = self._partial[_LONGEST:]
        return lines

    def rest(self) -> list[str]:
        """The last line of a stream that ends without a newline."""
        partial, self._partial = self._partial + self._decoder.decode(b"", final=True), ""
        return [_visible(partial)] if partial else []


def _visible(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2]


@dataclass(frozen=True)
class Failure:
    """What a script said when it ended. Two with the same `signature` are the same failure.

    `text` is its traceback, or how to use it. `error` is its line ``ValueError: why``; the signature is
    the frames and that line, without addresses and numbers that differ from process to process.
    """

    text: tuple[str, ...]
    error: str
    signature: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The exception's name, without its module."""
        return self.error.partition(":")[0].rpartition(".")[2]


class TracebackHold:
    """Holds back a traceback, or a usage message, on standard error until the process ends or goes on.

    A traceback that is only logged, by a process that lives on, is let go `patience` seconds after it
    began; the one that ends the script is kept, so that four workers do not print it four times.
    """

    def __init__(self, patience: float = 5.0) -> None:
        self._patience = patience
        self._held: list[str] = []
        self.deadline: float | None = None

    def feed(self, line: str, now: float) -> list[str]:
        """Takes a line; returns the lines to show now."""
        if self.deadline is None:
            if not _OPENING.match(line):
                return [line]
            self.deadline = now + self._patience
        self._held.append(line)
        return self.let_go(now) if len(self._held) >= _MOST_HELD else []

    def let_go(self, now: float | None = None) -> list[str]:
        """The lines held: those past their deadline, or all of them without a time."""
        if self.deadline is None or (
            now is not None and now < self.deadline and len(self._held) < _MOST_HELD
        ):
            return []
        held, self._held, self.deadline = self._held, [], None
        return held

    def failure(self) -> Failure | None:
        """The traceback that is held, taken out; None where nothing is held."""
        held = self.let_go()
        return failure_of(held) if held else None


def exit_of(code: int, last: str) -> Failure:
    """A script that ended itself with an exit code, and with a line that has been shown."""
    return Failure((), f"exit code {code}: {last}", (str(code), _VARIABLE.sub("#", last)))


def failure_of(lines: list[str]) -> Failure:
    """Reads a block that begins with a traceback; lines printed after it belong to the text alone."""
    frames: list[str] = []
    error = ""
    inside = False
    for line in lines:
        if _FRAME.match(line):
            frames.append(line.strip())
            inside = True
        elif inside and line.strip() and not line[0].isspace():
            error, inside = line, False
    error = error or next((line.strip() for line in reversed(lines) if line.strip()), "")
    return Failure(tuple(lines), error, (*frames, _VARIABLE.sub("#", error)))
