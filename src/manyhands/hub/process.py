"""The hub as a process: it takes a run up from its folder, serves it, and leaves its reports behind."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uvicorn

from manyhands.checkpoints.options import to_resume
from manyhands.core.coordinator import EPOCH_BITS, Coordinator
from manyhands.core.decisions import Note
from manyhands.errors import ConfigurationError, JournalError, MachineError, PortInUse
from manyhands.hub.address import Address, listen, read_address, sole, url_of, write_address
from manyhands.hub.api import application
from manyhands.hub.connections import FRAME_BYTES
from manyhands.hub.journal import Journal
from manyhands.hub.server import Hub, Limits
from manyhands.hub.settings import Settings

log = logging.getLogger("manyhands.hub")

TAKE_OVER_SECONDS = 5.0
LOCK_SECONDS = 2.0
FAREWELL_SECONDS = 5.0


def serve(settings: Settings) -> int:
    """Hold the folder and serve the run until it is over; returns the exit code."""
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"the run folder {settings.folder} cannot be made: {error.strerror}; choose another with --folder"
        ) from None
    with sole(settings.folder, LOCK_SECONDS), _listener(settings) as listener:
        well = asyncio.run(_serve(settings, listener))
        write_reports(settings.folder)
    return 0 if well else 1


def _listener(settings: Settings) -> socket.socket:
    """The port asked for, else the one that the workers of this run know already, else a free one."""
    before = read_address(settings.folder) if settings.port == 0 else None
    if before is None or before.run != settings.run:
        return listen(settings.host, settings.port)
    try:
        return listen(settings.host, before.port, TAKE_OVER_SECONDS)
    except PortInUse as error:
        raise PortInUse(f"{error}. The workers of run {settings.run} look for their hub on it") from None


async def _serve(settings: Settings, listener: socket.socket) -> bool:
    """Serve until the run is over or a signal says so. Did the run go well, as far as it went?"""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    with Journal(settings.folder / "hub.db") as journal:
        coordinator, killed = take_up(settings, journal)
        hub = Hub(coordinator, journal, settings.token, Limits(deadline=settings.journal_deadline))
        if killed:
            why = f"the hub is back after it died; it holds version {coordinator.version}"
            hub.note(time.time(), Note("hub", "", why))
        port = listener.getsockname()[1]
        address = Address(url_of(settings.host, port), os.getpid(), settings.run, settings.token, port)

        def announce() -> None:
            write_address(settings.folder, address)
            log.info("run %s at %s, folder %s", address.run, address.url, settings.folder)

        await _until_over(hub, Server(hub, listener, announce), stopped, settings)
        try:
            journal.write(hub.last_row(), running=b"")
        except JournalError as error:
            log.error("%s", error)
    return hub.ended is None or hub.ended.ok


def take_up(settings: Settings, journal: Journal) -> tuple[Coordinator, bool]:
    """The coordinator as the last hub of this folder left it, and whether that hub was killed."""
    snapshot, run = journal.state("coordinator"), journal.state("run")
    if run is not None and run != settings.run.encode():
        raise ConfigurationError(
            f"{settings.folder} holds the run {run.decode()}, not {settings.run}: choose another --folder"
        )
    if snapshot is None:
        coordinator = Coordinator(settings.run, settings.expected, settings.lease)
        coordinator.checkpoints.plan = settings.checkpoints
        if settings.take_over:
            coordinator.take_over(secrets.randbits(EPOCH_BITS))
        if settings.resume:
            kept, manifest = to_resume(settings.resume, verified=False)
            log.info("going on with version %s of run %s, from %s", kept.version, manifest.run, kept.url)
            coordinator.resume(kept, manifest.datasets, manifest.tensors, manifest.strategy)
        now = str(time.time()).encode()
        journal.write(
            [], run=settings.run.encode(), started=now, running=b"yes", coordinator=coordinator.snapshot()
        )
        return coordinator, False
    try:
        coordinator = Coordinator.restore(snapshot)
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError) as error:
        raise JournalError(
            f"the state in {journal.path} cannot be read ({error}): it may be of another version of manyhands"
        ) from error
    coordinator.expected, coordinator.membership.lease = settings.expected, settings.lease  # as asked now
    coordinator.checkpoints.plan = settings.checkpoints
    killed = journal.state("running") == b"yes"
    journal.write([], running=b"yes")
    return coordinator, killed


class Server(uvicorn.Server):
    """Uvicorn on a socket that listens already, which leaves the signals to us and says when it is up."""

    def __init__(self, hub: Hub, listener: socket.socket, announce: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                application(hub),
                http="h11",
                ws="websockets-sansio",
                ws_max_size=FRAME_BYTES,
                ws_ping_interval=None,  # silence is judged by leases
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._listener = listener
        self._announce = announce

        self._stopping = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self._stopping.wait()

    async def until_stopped(self) -> None:
        """Serve; returns once `stop` was called and all connections are closed, or a second later."""
        await self.serve(sockets=[self._listener])

    def stop(self) -> None:
        self._stopping.set()


async def _until_over(hub: Hub, server: Server, stopped: asyncio.Event, settings: Settings) -> None:
    """Run loop and server. The loop ends first: that workers vanish with their server is no news to it."""
    loop = asyncio.create_task(hub.run())
    serving = asyncio.create_task(server.until_stopped())
    ends = [loop, serving, asyncio.create_task(stopped.wait()), asyncio.create_task(_farewell(hub, settings))]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in ends:
            if task is not serving:
                task.cancel()
        await asyncio.wait([task for task in ends if task is not serving])
        server.stop()
        await asyncio.wait([serving])
    for task in (loop, serving):
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def _farewell(hub: Hub, settings: Settings) -> None:
    """Wait for the run's end, or a newer hub, and then until all workers have heard of it and gone."""
    await hub.over.wait()
    if not settings.until_finished and not hub.coordinator.superseded:
        await asyncio.to_thread(write_reports, settings.folder)
        await asyncio.Event().wait()
    until = time.monotonic() + FAREWELL_SECONDS
    while (hub.open or not hub.greeted) and time.monotonic() < until:
        await asyncio.sleep(0.02)


def write_reports(folder: Path) -> None:
    """summary.json and report.html; a run is not lost because its picture could not be drawn."""
    try:
        from manyhands.hub.report import write_report
        from manyhands.hub.summary import write_summary

        write_summary(folder)
        write_report(folder)
    except Exception as error:
        log.error("the report of %s cannot be written: %s", folder, error)
