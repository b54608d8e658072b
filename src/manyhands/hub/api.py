"""The hub over HTTP: the workers' control socket, REST for people and tools, metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from manyhands.errors import JournalError
from manyhands.hub.metrics import CONTENT_TYPE, prometheus
from manyhands.hub.server import UNKNOWN_TOKEN, Hub
from manyhands.hub.status import ledger_status, rounds_status, run_status, workers_status

ROUNDS, EVENTS = 20, 1000
MOST_ROWS = 10_000
BODY_BYTES = 64 * 2**10

Endpoint = Callable[[Request], Awaitable[Response]]


class BadRequest(Exception):
    """What the caller asks for makes no sense; the text says why."""


def application(hub: Hub) -> Starlette:
    """The ASGI application in front of this hub."""

    async def run(_: Request) -> Response:
        return _json(run_status(hub))

    async def workers(_: Request) -> Response:
        return _json(workers_status(hub))

    async def rounds(request: Request) -> Response:
        return _json(rounds_status(hub, last=_number(request, "last", ROUNDS)))

    async def ledger(_: Request) -> Response:
        return _json(ledger_status(hub))

    async def events(request: Request) -> Response:
        return _json(hub.journal.events(after=_number(request, "after", 0, most=2**62), limit=EVENTS))

    async def metrics(_: Request) -> Response:
        return Response(prometheus(hub), media_type=CONTENT_TYPE)

    async def stop(request: Request) -> Response:
        why = await _why(request)
        hub.stop(why)
        return _json({"stopping": True, "why": why})

    async def health(_: Request) -> Response:
        if hub.trouble:
            return _json({"ok": False, "run": hub.coordinator.run, "why": hub.trouble}, 503)
        return _json({"ok": True, "run": hub.coordinator.run})

    def guarded(path: str, endpoint: Endpoint, method: str = "GET") -> BaseRoute:
        async def known(request: Request) -> Response:
            if not hub.knows(request.headers.get("authorization")):
                return _json({"error": UNKNOWN_TOKEN}, 401, {"WWW-Authenticate": "Bearer"})
            try:
                return await endpoint(request)
            except BadRequest as error:
                return _json({"error": str(error)}, 400)
            except JournalError as error:
                return _json({"error": str(error)}, 503)

        return Route(path, known, methods=[method])

    return Starlette(
        routes=[
            WebSocketRoute("/control", hub.control),
            Route("/healthz", health),
            guarded("/metrics", metrics),
            guarded("/api/run", run),
            guarded("/api/workers", workers),
            guarded("/api/rounds", rounds),
            guarded("/api/ledger", ledger),
            guarded("/api/events", events),
            guarded("/api/stop", stop, "POST"),
        ]
    )


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def _number(request: Request, name: str, default: int, most: int = MOST_ROWS) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20) or int(text) > most:
        raise BadRequest(f"{name}={text!r} is not a whole number from 0 to {most}")
    return int(text)


async def _why(request: Request) -> str:
    """The reason in the body {"why": ...}; a body is not needed."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise BadRequest(f"the body is larger than {BODY_BYTES} bytes")
    try:
        asked: Any = msgspec.json.decode(body or b"{}", type=dict[str, str])
    except msgspec.DecodeError as error:
        raise BadRequest(f'the body is not like {{"why": "enough"}}: {error}') from None
    return str(asked.get("why") or "stopped on request")
