"""One start of a worker, as the hub and its peers know it."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable

from manyhands._version import __version__
from manyhands.core import moves
from manyhands.core.messages import (
    Acknowledged,
    Beat,
    Evicted,
    Finished,
    Followed,
    Freeze,
    Hello,
    Leased,
    Left,
    Opened,
    Ready,
    Refuse,
    Save,
    Suspected,
    ToWorker,
    Welcome,
)
from manyhands.errors import (
    ConfigurationError,
    DataError,
    ManyhandsError,
    ModelError,
    ProtocolError,
    RunLost,
    RunOver,
    VersionMismatch,
)
from manyhands.exchange.memory import Loan, Memory
from manyhands.exchange.tcp import Exchange
from manyhands.exchange.wire import Header, Kind
from manyhands.sharing.strategy import Strategy
from manyhands.worker import hanging
from manyhands.worker.control import Control
from manyhands.worker.driving import Driver
from manyhands.worker.leasing import Leasing
from manyhands.worker.other_hubs import OtherHubs
from manyhands.worker.part import Part
from manyhands.worker.progress import Progress
from manyhands.worker.settings import Settings
from manyhands.worker.waiting import Waiting

log = logging.getLogger("manyhands.worker")

ERRORS: dict[str, type[ManyhandsError]] = {
    error.__name__: error for error in (ConfigurationError, DataError, ModelError, VersionMismatch)
}
DRAIN_SECONDS = 2.0
WILDCARDS = ("0.0.0.0", "::")


class Incarnation:
    """An exchange and a control connection under one name, and what is said over them.

    Implements `roster.Sink`. `evicted` is why the hub ended it, `part` is there once it shares a model;
    `position` and `expected` are its place among the workers that start together, and their number; `epoch`
    is that of the newest hub it has heard.
    """

    def __init__(
        self, settings: Settings, run: str, progress: Progress, waiting: Waiting, epoch: int = 0
    ) -> None:
        """Connects; raises what the hub answers, or HubUnreachable."""
        self.name = f"{settings.name}-{uuid.uuid4().hex[:12]}"
        self.run = run
        self.epoch = epoch
        self.position, self.expected = 0, 1
        self.evicted = ""
        self.part: Part | None = None
        self._settings, self._progress, self._waiting = settings, progress, waiting
        self._welcomed = False
        self._shares: Ready | None = None
        self._exchange: Exchange | None = None
        self._host = ""
        self._control = Control(
            settings.hub,
            settings.token,
            self._hello,
            self._beat,
            self._heard,
            self.failed,
            waiting.changed,
        )
        self._other_hubs = OtherHubs(self._control, settings.token, self._followed)
        self.send = self._control.send
        self.leasing = Leasing(progress, waiting, self.send, lambda: self.connected)
        try:
            self._connect(settings.connect_seconds)
        except BaseException:
            self.close()
            raise

    def _connect(self, seconds: float) -> None:
        self._control.start(time.monotonic() + seconds)
        if not self._waiting.wait(lambda: self._welcomed, seconds):
            raise ConfigurationError(
                f"the hub's welcome did not come in {seconds:.0f} s from {self._settings.hub}"
            )
        self._other_hubs.start()

    def share(self, driver: Driver, strategy: Strategy, memory: Memory | None) -> Part:
        """Ask to be a member, with this model, whose vectors lie in a memory that others may read."""
        with self._waiting.changed:
            self._shares = Ready(driver.tensors, repr(strategy), self._progress.applied)
            if memory is not None:
                self._listening.lend(memory)
            self.part = Part(
                self.name,
                driver,
                self._progress,
                self._listening,
                memory,
                strategy,
                self.run,
                self._waiting,
                self.send,
            )
            self._waiting.meanwhile = self.part.oblige
            self.send(self._shares)
        return self.part

    @property
    def connected(self) -> bool:
        """The hub hears what is sent."""
        return self._control.connected

    def resign(self, why: str) -> None:
        """Be evicted, by its own word: what it holds is wrong."""
        self.take_leave(Left(finished=False, why=why))
        self._out(why)

    def take_leave(self, left: Left) -> None:
        """The last beat, that its counters are whole, and the goodbye."""
        self.send(self._beat())
        self.send(left)

    def close(self) -> None:
        """Let what is queued go out, and close both connections."""
        if self.part is not None:
            self.part.release()
        exchange = self._exchange
        if exchange is not None:
            exchange.drain(time.monotonic() + DRAIN_SECONDS)
        self._other_hubs.close()
        self._control.close()
        if exchange is not None:
            exchange.close()

    def failed(self, error: Exception) -> None:
        """One of the threads has ended as it never should: the script must not go on with what is left."""
        log.error("a thread of worker %s has ended", self._waiting.name, exc_info=error)
        if not isinstance(error, ManyhandsError):
            error = ProtocolError(
                f"a thread of worker {self._waiting.name} ended with {type(error).__name__}: {error}; "
                "its traceback is in the log"
            )
        self._waiting.fail(error)

    # --- the hub, on the threads of the control connection -----------------------------------------

    @property
    def _listening(self) -> Exchange:
        assert self._exchange is not None
        return self._exchange

    def _listen(self, local: str) -> Exchange:
        """At the address that the settings name, or at our end of the connection to the hub."""
        host = self._settings.host or local
        self._host = local if host in WILDCARDS else host
        return Exchange(self.run, self._settings.token, self.name, self, host=host)

    def _hello(self, local: str) -> Hello:
        with self._waiting.changed:
            self._exchange = self._exchange or self._listen(local)
            return Hello(
                run=self.run,
                incarnation=self.name,
                name=self._settings.name,
                pid=os.getpid(),
                host=self._host,
                port=self._exchange.port,
                software=__version__,
                standing=self.part.standing() if self.part is not None else None,
                datasets=tuple(holding.dataset for holding in self._progress.holdings.values()),
                ready=self._shares,
                machine=self._settings.machine,
                epoch=self.epoch,
            )

    def _followed(self) -> Followed:
        with self._waiting.changed:
            return Followed(self.run, self.name, self._settings.name, self.epoch)

    def _beat(self) -> Beat:
        if self.part is not None:
            self.part.press()
        with self._waiting.changed:
            return Beat(
                self._listening.sent_bytes,
                self._listening.received_bytes,
                self._progress.read,
                self.part.waiting_for() if self.part is not None else "",
                self._listening.unreachable,
                self._listening.neighbours if self.part is not None and self.part.shares else None,
                self._listening.measure_line(),
                self._listening.streams,
                *self._waiting.step(),
            )

    def _heard(self, message: ToWorker) -> None:
        match message:
            case Freeze() | Opened():
                self._tell(message)
            case Evicted(why):
                self._out(why)
                if self.part is not None:
                    hanging.show(self._waiting)
            case Refuse(kind, why):
                self._waiting.fail(ERRORS.get(kind, ConfigurationError)(why))
            case Finished(why, ok):
                self._waiting.fail(RunOver(why) if ok else RunLost(why))
            case _:
                with self._waiting.changed:
                    self._note(message)
                    self._waiting.changed.notify_all()

    def _note(self, message: Welcome | Leased | Acknowledged | Save) -> None:
        match message:
            case Welcome():
                self.run, self.position, self.expected = message.run, message.place, message.expected
                self.epoch = max(self.epoch, message.epoch)
                self._welcomed = True
                self._control.bound_silence(message.lease)
                self._listening.deadlines.stall = message.lease
                self._listening.serve(message.run)
                if message.resumed:
                    self.leasing.repeat()
            case Leased():
                self.leasing.leased(message)
            case Acknowledged(number):
                if self.part is not None:
                    self.part.acknowledged(number)
            case Save():
                if self.part is not None:
                    self.part.saver.asked(message)

    def _tell(self, event: moves.Event) -> None:
        if self.part is not None:
            self.part.tell(event)

    def _out(self, why: str) -> None:
        with self._waiting.changed:
            if self.evicted:  # said again to every beat
                return
            self.evicted = why
            self.leasing.end()
            self._waiting.changed.notify_all()
        if self.part is not None:
            self.part.release()
            self.part.tell(moves.Out(why))
            self._listening.members({})  # who is no member would be refused, again and again

    # --- peers, on the threads of the exchange (roster.Sink) ---------------------------------------

    def place(self, peer: str, header: Header, loan: Loan | None = None) -> memoryview | None:
        """Where a peer's payload goes; its length is within the limits of `wire.LIMITS`."""
        if header.kind is Kind.MESSAGE:
            return memoryview(bytearray(header.length))
        return None if self.part is None else self.part.place(peer, header, loan)

    def arrived(self, peer: str, header: Header, payload: memoryview | None) -> Callable[[], None] | None:
        """A payload is complete."""
        if payload is None or self.part is None:
            return None
        return self.part.arrived(peer, header, payload)

    def lost(self, peer: str, why: str) -> None:
        """A connection broke: the hub decides what it means."""
        self.send(Suspected(peer, why))
        if self.part is not None:
            self.part.lost(peer)
