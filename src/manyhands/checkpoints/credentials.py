"""The secrets in the URLs of stores: in the environment of who opens them, and nowhere else.

``sftp://me:secret@host/kept`` is told to others, written and shown as ``sftp://host/kept``. Processes that
this one starts inherit the rest.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

ENTRY = "MANYHANDS_CHECKPOINT_URLS"
"""URLs with their secrets, one a line."""


TOKEN_LENGTH = 16
"""From which on a user without a password is a token, and no name."""

CONTAINERS = ("abfs", "abfss", "az", "wasb", "wasbs")
"""Schemes of URLs in which what stands before the @ is no user: ``abfs://container@account/kept``."""


def without_secrets(url: str) -> str:
    """The URL without users, passwords and queries, in each part of a chained one; a path as it is."""
    return "::".join(
        _with(part, netloc=urlsplit(part).netloc.removeprefix(f"{_user(part)}@"), query="")
        if _secrets(part)
        else part
        for part in url.split("::")
    )


def remember(url: str) -> None:
    """Have this process and those that it starts know the secrets of this URL."""
    known = os.environ.get(ENTRY, "").splitlines()
    if without_secrets(url) != url and url not in known:
        os.environ[ENTRY] = "\n".join((url, *known))


def with_secrets(url: str) -> str:
    """The URL as it opens, where the secrets of one that it lies under are known."""
    for whole in os.environ.get(ENTRY, "").splitlines():
        told, known = without_secrets(whole).rstrip("/"), whole.split("::")
        if url == told or url.startswith(f"{told}/"):
            parts = zip(url.split("::", len(known) - 1), known, strict=True)
            return "::".join(
                _with(part, netloc=urlsplit(secret).netloc, query=urlsplit(secret).query)
                if _secrets(secret)
                else part
                for part, secret in parts
            )
    return url


def hide(text: str) -> str:
    """The text without the secrets that are known: libraries put URLs into their errors."""
    for whole in os.environ.get(ENTRY, "").splitlines():
        for part in whole.split("::"):
            for secret in _secrets(part):
                named = secret == _user(part) and not urlsplit(part).password
                bare = named and len(secret) < TOKEN_LENGTH  # it may be part of any word
                text = text.replace(f"{secret}@", "***@") if bare else text.replace(secret, "***")
    return text


def _secrets(part: str) -> list[str]:
    """User and password together, the password, and the query: what there is of it."""
    if "://" not in part:
        return []
    return [*filter(None, (_user(part), urlsplit(part).password, urlsplit(part).query))]


def _user(part: str) -> str:
    parts = urlsplit(part)
    named = parts.scheme in CONTAINERS and not parts.password
    return "" if named else parts.netloc.rpartition("@")[0]


def _with(part: str, *, netloc: str, query: str) -> str:
    return urlsplit(part)._replace(netloc=netloc, query=query).geturl()
