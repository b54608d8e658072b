"""The secrets in the URLs of stores: in the environment of who opens them, and nowhere else.

``sftp://me:secret@host/kept`` is told to others, written and shown as ``sftp://host/kept``. Processes that
this one starts inherit the rest.
"""

from __future__ import annotations

import os
from urllib.parse import SplitResult, urlsplit

ENTRY = "MANYHANDS_CHECKPOINT_URLS"
"""URLs with their secrets, one a line."""


def without_secrets(url: str) -> str:
    """The URL without user, password and query; a path as it is."""
    parts = urlsplit(url)
    if not (parts.scheme and "://" in url) or not (_user(parts) or parts.query):
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def remember(url: str) -> None:
    """Have this process and those that it starts know the secrets of this URL."""
    known = os.environ.get(ENTRY, "").splitlines()
    if without_secrets(url) != url and url not in known:
        os.environ[ENTRY] = "\n".join((url, *known))


def with_secrets(url: str) -> str:
    """The URL as it opens, where the secrets of one that it lies under are known."""
    for whole in os.environ.get(ENTRY, "").splitlines():
        told, parts = without_secrets(whole).rstrip("/"), urlsplit(whole)
        if url == told or url.startswith(f"{told}/"):
            return urlsplit(url)._replace(netloc=parts.netloc, query=parts.query).geturl()
    return url


def hide(text: str) -> str:
    """The text without the secrets that are known: libraries put URLs into their errors."""
    for whole in os.environ.get(ENTRY, "").splitlines():
        parts = urlsplit(whole)
        for secret in filter(None, (_user(parts), parts.password, parts.query)):
            text = text.replace(secret, "***")
    return text


def _user(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[0]
