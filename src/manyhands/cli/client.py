"""Asks a hub over its REST API."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from manyhands.errors import ConfigurationError, HubUnreachable


class HubClient:
    """The hub at ``http://host:port``. Every call opens a connection and ends within `timeout` seconds.

    Of several addresses, with commas between, the first that answers counts.

    Raises `ConfigurationError` for a URL that is none, or a token that the hub does not know, and
    `HubUnreachable` where no hub answers.
    """

    def __init__(self, url: str, token: str, timeout: float = 5.0) -> None:
        self._places = [_place(each) for each in url.split(",")]
        self.url = ",".join(f"http://{place}" for place in self._places)
        self._token, self._timeout = token, timeout

    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = self._get("/api/run")
        return found

    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("/api/workers")
        return found

    def rounds(self, last: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get(f"/api/rounds?last={last}")
        return found

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get(f"/api/events?after={after}")
        return found

    def run_id(self) -> str:
        """The id of the hub's run; needs no token. A hub that cannot write its journal answers too."""
        return str(self._get("/healthz", well=(200, 503)).get("run", ""))

    def _get(self, path: str, well: tuple[int, ...] = (200,)) -> Any:
        why = ""
        for place in tuple(self._places):
            try:
                return self._ask(place, path, well)
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                self._places = [*self._places[1:], self._places[0]]  # the next one first from now on
        raise HubUnreachable(
            f"no hub answers at {self.url} ({why}): start one with `manyhands hub`, or mend the address"
        )

    def _ask(self, place: str, path: str, well: tuple[int, ...]) -> Any:
        connection = http.client.HTTPConnection(place, timeout=self._timeout)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status == 401:
            raise ConfigurationError(
                f"the hub at http://{place} does not know this token: give --token the one in its hub.json"
            )
        if answer.status not in well:
            raise HubUnreachable(f"the hub at http://{place} answered {answer.status} to {path}: see its log")
        return json.loads(body)


def _place(url: str) -> str:
    """Host and port of a hub's address."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or port is None:
        raise ConfigurationError(f"{url} is no address of a hub: give it as http://HOST:PORT")
    return parts.netloc
