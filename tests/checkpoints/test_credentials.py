"""Secrets in the URL of a store: used to open it, told to nobody."""

from __future__ import annotations

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from manyhands.checkpoints.credentials import ENTRY, hide, remember, with_secrets, without_secrets
from manyhands.checkpoints.options import plan_of
from manyhands.checkpoints.store import Store
from manyhands.errors import CheckpointError, ConfigurationError

WHOLE = "locked://me:secret@host/kept"


class Locked(MemoryFileSystem):
    """A store that opens for who says the word, and says it in its errors."""

    protocol = "locked"
    cachable = False

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"word": path}

    def __init__(self, word: str = "", **options: object) -> None:
        super().__init__(**options)
        self.word = word

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.rpartition("@")[2].partition("://")[2].strip("/")

    def exists(self, path: str, **options: object) -> bool:  # noqa: ARG002
        raise PermissionError(f"{self.word} is refused")


@pytest.fixture(autouse=True)
def _locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENTRY, "")
    fsspec.register_implementation("locked", Locked, clobber=True)


def test_a_store_is_opened_with_its_secrets_and_named_without() -> None:
    plan = plan_of(WHOLE, "10min", 3)
    assert plan.url == "locked://host/kept"
    assert Store(f"{plan.url}/deeper")._files.word == f"{WHOLE}/deeper", "also where only its name is known"


def test_errors_of_a_store_do_not_tell_its_secrets() -> None:
    with pytest.raises(CheckpointError) as caught:
        Store(WHOLE).names()
    assert "secret" not in str(caught.value)
    assert "locked://***@host/kept is refused" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "kept",
        "/tmp/kept@home",
        "file:///tmp/kept",
        "s3://bucket/kept",
        "abfs://container@account.dfs.core.windows.net/kept",
        "simplecache::abfs://container@account/kept",
    ],
)
def test_a_url_without_secrets_stays_as_it_is(url: str) -> None:
    remember(url)
    assert without_secrets(url) == with_secrets(url) == hide(url) == url


def test_a_query_is_secret_too() -> None:
    whole = "https://host/kept?token=secret"
    remember(whole)
    assert without_secrets(whole) == "https://host/kept"
    assert with_secrets("https://host/kept/one") == "https://host/kept/one?token=secret"
    assert hide(f"no {whole}") == "no https://host/kept?***"


def test_each_part_of_a_chained_url_is_told_without_its_secrets() -> None:
    whole = "zip://kept.zip::simplecache::locked://me:secret@host/kept?token=word"
    remember(whole)
    told = without_secrets(whole)
    assert told == "zip://kept.zip::simplecache::locked://host/kept"
    assert with_secrets(f"{told}/deeper") == (
        "zip://kept.zip::simplecache::locked://me:secret@host/kept/deeper?token=word"
    )
    assert hide(whole) == "zip://kept.zip::simplecache::locked://***@host/kept?***"


def test_a_password_is_secret_before_a_container_too() -> None:
    assert without_secrets("abfs://container:secret@account/kept") == "abfs://account/kept"


def test_a_user_without_a_password_is_no_secret_in_other_words() -> None:
    whole = "locked://me@host/kept"
    remember(whole)
    assert without_secrets(whole) == "locked://host/kept"
    assert hide(f"timeout at {whole}") == "timeout at locked://***@host/kept"


class Guarded(MemoryFileSystem):
    """A store that is opened with a password, and has errors of its own."""

    protocol = "guarded"

    def __init__(self, **_: object) -> None:
        raise PermissionRefused("530 Login incorrect")


class PermissionRefused(Exception):
    pass


def test_a_store_that_lets_nobody_in_is_named_and_its_secret_is_not() -> None:
    fsspec.register_implementation("guarded", Guarded, clobber=True)
    with pytest.raises(ConfigurationError, match=r"kept in guarded://host/kept: 530 Login incorrect"):
        Store("guarded://me:secret@host/kept")
