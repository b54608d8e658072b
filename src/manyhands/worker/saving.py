"""The committed state on its way into a checkpoint: copied at a version boundary, written behind it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from manyhands._version import __version__
from manyhands.checkpoints.manifest import FORMAT, File, Manifest
from manyhands.core.messages import Kept, Save, Saved, ToHub
from manyhands.core.rounds import Participant
from manyhands.errors import CheckpointError, ManyhandsError
from manyhands.sharing.tree import Tree
from manyhands.worker import termination
from manyhands.worker.driving import Driver
from manyhands.worker.packing import packed
from manyhands.worker.progress import Progress
from manyhands.worker.slices import Slices
from manyhands.worker.waiting import LOOK_SECONDS, Waiting

if TYPE_CHECKING:
    from manyhands.checkpoints.store import Store

log = logging.getLogger("manyhands.worker")

WRITE_SECONDS = 600.0
"""How long who leaves waits until a checkpoint is written."""

T = TypeVar("T")


class Saver:
    """Keeps the state when the hub asks for it. All under the lock, but the writing and its end."""

    def __init__(
        self,
        run: str,
        strategy: str,
        driver: Driver,
        progress: Progress,
        participant: Participant,
        waiting: Waiting,
        report: Callable[[ToHub], None],
        slices: Slices,
    ) -> None:
        self._run, self._strategy, self._driver, self._progress = run, strategy, driver, progress
        self._participant, self._waiting, self._report = participant, waiting, report
        self._slices = slices
        self._wanted: Save | None = None
        self._writer: Thread | None = None

    def asked(self, order: Save) -> None:
        """The hub wants the state of the next version boundary."""
        self._wanted = order

    def save(self) -> None:
        """On the script's thread, where the driver holds the participant's version: copy it, if asked to."""
        order, participant = self._wanted, self._participant
        if order is None or participant.phase != "member":
            return
        from manyhands.checkpoints.files import take_apart  # most runs keep nothing
        from manyhands.checkpoints.store import PLAIN, TENSORS, Store, name_of

        self._wanted = None
        began, version = time.monotonic(), participant.version
        holdings = self._progress.saved()
        datasets = self._progress.datasets()
        try:
            owed: list[Tree] = [*self._slices.owed()]
            tensors, plain = packed(
                self._driver, self._progress, version, self._waiting, take_apart, owed=owed
            )
        except Exception as error:  # whatever cannot be kept costs the checkpoint, not the worker
            self._report(Saved(order.serial, error=f"{type(error).__name__}: {error}"))
            return

        def described(files: dict[str, File]) -> Manifest:
            return Manifest(
                format=FORMAT,
                software=__version__,
                run=self._run,
                version=version,
                created=time.time(),
                strategy=self._strategy,
                tensors=self._driver.tensors,
                datasets=datasets,
                holdings=holdings,
                files=files,
            )

        def write() -> None:
            try:
                store, name = Store(order.url), name_of(version.number, order.line, order.serial)
                manifest = store.write(name, {TENSORS: tensors, PLAIN: plain}, described)
                if self._participant.phase == "outside":  # evicted meanwhile, perhaps for wrong bits
                    store.remove(order.line, [order.serial])
                    return
                kept = Kept(f"{store.url}/{name}", version, holdings)
                done = Saved(order.serial, kept, manifest.bytes, time.monotonic() - began)
            except Exception as error:  # whatever a store raises costs this checkpoint, not the worker
                log.warning("worker %s: %s", self._waiting.name, error)
                done = Saved(order.serial, error=str(error) or type(error).__name__)
            self._report(done)
            if done.kept is not None:
                try:
                    store.remove(order.line, order.wrong)
                    store.keep(order.keep, order.line)
                except ManyhandsError as error:
                    log.warning("worker %s cannot remove old checkpoints: %s", self._waiting.name, error)

        self._writer = Thread(target=write, name="mh-save", daemon=True)
        self._writer.start()

    @property
    def busy(self) -> bool:
        """A checkpoint is being written, or wanted."""
        return self._wanted is not None or (self._writer is not None and self._writer.is_alive())

    def finish(self) -> None:
        """Wait until what is being written is written. Not under the lock."""
        if self._writer is None:
            return
        seconds = WRITE_SECONDS * self._waiting.patience
        deadline = time.monotonic() + seconds
        while self._writer.is_alive() and time.monotonic() < deadline:
            self._writer.join(LOOK_SECONDS)
            self._waiting.here()
        if self._writer.is_alive():
            log.warning(
                "worker %s leaves though a checkpoint is still being written after %.0f s",
                self._waiting.name,
                seconds,
            )


def restored(url: str, seconds: float) -> Tree:
    """The state of the checkpoint at this URL, verified; CheckpointError where that takes longer."""
    return _within(seconds, url, lambda store, name: store.state(name))


def before(url: str, seconds: float) -> Kept | None:
    """The checkpoint of the same run before this one, the newest that is whole; None where there is none."""

    def look(store: Store, name: str) -> Kept | None:
        found = store.before(name)
        if found is None:
            return None
        return Kept(f"{store.url}/{found[0]}", found[1].version, found[1].holdings)

    return _within(seconds, url, look)


def _within(seconds: float, url: str, read: Callable[[Store, str], T]) -> T:
    """What is read of a store, by a thread that may hang with it."""
    from manyhands.checkpoints.store import Store

    came: Queue[T | Exception] = Queue()

    def work() -> None:
        root, _, name = url.rpartition("/")
        try:
            came.put(read(Store(root), name))
        except Exception as error:
            came.put(error)

    Thread(target=work, name="mh-restore", daemon=True).start()
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            answer = came.get(timeout=min(left, LOOK_SECONDS))
        except Empty:
            termination.check()
            continue
        if isinstance(answer, Exception):
            raise answer
        return answer
    raise CheckpointError(
        f"the checkpoint {url} was not read in {seconds:.0f} s: see that its store can be reached, or give "
        "--patience 2 where it is slow"
    )
