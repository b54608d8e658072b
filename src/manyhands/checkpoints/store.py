"""Checkpoints in a folder, here or in any store that fsspec knows: each is whole, or it is none."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import fsspec
import msgspec
import xxhash
from fsspec.implementations.local import LocalFileSystem

from manyhands.checkpoints.credentials import hide, remember, with_secrets, without_secrets
from manyhands.checkpoints.files import put_together
from manyhands.checkpoints.manifest import FORMAT, File, Manifest
from manyhands.errors import CheckpointError, ConfigurationError, Damaged
from manyhands.sharing.tree import Tree

MANIFEST = "manifest.json"
TENSORS, PLAIN = "state.safetensors", "state.json"

_NAME = re.compile(r"v(\d{8,})-([0-9a-f]{8})-(\d+)")


class Store:
    """The checkpoints under a URL: a path here, or one with a protocol, as s3://bucket/runs/mine.

    Raises `ConfigurationError` for a URL that fsspec cannot open, `CheckpointError` where the store fails.
    `url` has no secrets, nor have errors: see `credentials`.
    """

    def __init__(self, url: str) -> None:
        remember(url)
        url = without_secrets(url)
        try:
            self._files, self._root = fsspec.core.url_to_fs(with_secrets(url.rstrip("/") or url))
        except Exception as error:  # each store has errors of its own, also for a wrong password
            raise ConfigurationError(
                f"checkpoints cannot be kept in {url}: {hide(str(error))}; give a folder, or a URL that "
                "fsspec knows"
            ) from None
        # A script may change its folder, and is told of the path as it was meant.
        self.url = self._root if isinstance(self._files, LocalFileSystem) else url.rstrip("/")

    def write(
        self, name: str, contents: Mapping[str, bytes], manifest: Callable[[dict[str, File]], Manifest]
    ) -> Manifest:
        """Keep these files as one checkpoint; the manifest says what they are, and is written after them."""
        files = {path: File(len(data), _digest(data)) for path, data in contents.items()}
        whole = manifest(files)

        def put() -> None:
            self._files.makedirs(self._path(name), exist_ok=True)
            for path, data in contents.items():
                self._files.pipe_file(self._path(name, path), data)
            self._files.pipe_file(self._path(name, MANIFEST), _sealed(whole))

        self._try(f"written to {self.url}/{name}", put)
        return whole

    def names(self) -> list[str]:
        """All that may be checkpoints, torn ones too: those with the newest versions first."""

        def found() -> list[str]:
            self._files.invalidate_cache()
            if not self._files.exists(self._root):
                return []
            paths = self._files.ls(self._root, detail=False)
            return [path.rstrip("/").rpartition("/")[2] for path in paths]

        return sorted(
            (name for name in self._try(f"listed in {self.url}", found) if _NAME.fullmatch(name)), key=_age
        )[::-1]

    def manifest(self, name: str) -> Manifest:
        """What a checkpoint says it is. Raises `Damaged` for a torn one, else `CheckpointError`."""
        if not self._has(name, MANIFEST):
            raise Damaged(f"the checkpoint {self.url}/{name} is torn: it has no {MANIFEST}")
        try:
            return _unsealed(self._read(name, MANIFEST))
        except (msgspec.MsgspecError, ValueError) as error:
            raise Damaged(f"the {MANIFEST} of {self.url}/{name} is damaged: {error}") from error

    def verified(self, name: str) -> tuple[Manifest, dict[str, bytes]]:
        """A checkpoint with its files. Raises `Damaged` where one is not what it should be."""
        manifest = self.manifest(name)
        for path in manifest.files:
            if not self._has(name, path):
                raise Damaged(
                    f"the checkpoint {self.url}/{name} is damaged: it has no {path}; take an older one"
                )
        contents = {path: self._read(name, path) for path in manifest.files}
        for path, file in manifest.files.items():
            found = File(len(contents[path]), _digest(contents[path]))
            if found != file:
                raise Damaged(
                    f"{path} of the checkpoint {self.url}/{name} is damaged: {found.bytes} bytes with digest "
                    f"{found.digest}, the manifest says {file.bytes} with {file.digest}; take an older one"
                )
        return manifest, contents

    def state(self, name: str) -> Tree:
        """The state of a checkpoint, verified."""
        _, contents = self.verified(name)
        return put_together(contents[TENSORS], contents[PLAIN])

    def before(self, name: str) -> tuple[str, Manifest] | None:
        """The newest whole one of the same line that has an older version; None where there is none."""
        for other in self.names():
            if _attempt(other)[0] == _attempt(name)[0] and _age(other)[0] < _age(name)[0]:
                try:
                    return other, self.verified(other)[0]
                except Damaged:
                    continue
        return None

    def written(self, say: Callable[[str], None] = lambda _: None) -> list[str]:
        """Those with a manifest, which were written to their end, the last first."""
        written: list[tuple[float, str]] = []
        for name in self.names():
            try:
                written.append((self.manifest(name).created, name))
            except CheckpointError as error:
                say(str(error))
        return [name for _, name in sorted(written, reverse=True)]

    def newest(self, say: Callable[[str], None] = lambda _: None) -> str | None:
        """The one written last of those that are whole; `say` hears what is wrong with others."""
        for name in self.written(say):
            try:
                self.verified(name)
            except CheckpointError as error:
                say(str(error))
            else:
                return name
        return None

    def remove(self, line: str, serials: Collection[int]) -> None:
        """Remove what came of these attempts."""
        for name in self.names():
            if _attempt(name)[0] == line and _attempt(name)[1] in serials:
                self._remove(name)

    def keep(self, count: int, line: str) -> list[str]:
        """Remove what is older than the newest `count` whole ones of this line, torn or not; returns it."""
        removed, whole = [], 0
        own = [name for name in self.names() if _attempt(name)[0] == line]
        for name in sorted(own, key=_attempt, reverse=True):
            if whole >= count:
                self._remove(name)
                removed.append(name)
            elif self._has(name, MANIFEST):
                whole += 1
        return removed

    def _remove(self, name: str) -> None:
        self._try(f"removed from {self.url}", self._files.rm, self._path(name), recursive=True)

    def _has(self, name: str, path: str) -> bool:
        found: bool = self._try(f"found in {self.url}", self._files.exists, self._path(name, path))
        return found

    def _read(self, name: str, path: str) -> bytes:
        data: bytes = self._try(f"read from {self.url}/{name}", self._files.cat_file, self._path(name, path))
        return data

    def _path(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    def _try(self, what: str, do: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return do(*arguments, **options)
        except Exception as error:  # each store has errors of its own
            raise CheckpointError(
                f"a checkpoint cannot be {what}: {type(error).__name__}: {hide(str(error))}; see that the "
                "store can be reached, and has room and rights"
            ) from None


def found_at(url: str) -> tuple[Store, str | None]:
    """The store at a URL, or the one that holds the checkpoint there, with that one's name."""
    root, _, last = url.rstrip("/").rpartition("/")
    if root and last in (parent := Store(root)).names():
        return parent, last
    return Store(url), None


def name_of(number: int, line: str, serial: int) -> str:
    """A checkpoint's: its version, whose it is, and which attempt: two may write the same version."""
    return f"v{number:08d}-{line}-{serial}"


def _age(name: str) -> tuple[int, int]:
    number, _, serial = name[1:].split("-")
    return int(number), int(serial)


def _attempt(name: str) -> tuple[str, int]:
    _, line, serial = name.split("-")
    return line, int(serial)


def _digest(data: bytes | msgspec.Raw) -> str:
    return xxhash.xxh3_128_hexdigest(data)


class _Sealed(msgspec.Struct, frozen=True):
    """A manifest on its way, with the digest of its own bytes; format and software say who can read it."""

    format: int
    software: str
    digest: str
    manifest: msgspec.Raw


def _sealed(manifest: Manifest) -> bytes:
    inner = msgspec.json.encode(manifest)
    sealed = _Sealed(manifest.format, manifest.software, _digest(inner), msgspec.Raw(inner))
    return msgspec.json.encode(sealed)


def _unsealed(data: bytes) -> Manifest:
    sealed = msgspec.json.decode(data, type=_Sealed)
    if sealed.format != FORMAT:
        raise CheckpointError(
            f"it was written by manyhands {sealed.software} in format {sealed.format}, this "
            f"one reads {FORMAT}"
        )
    if _digest(sealed.manifest) != sealed.digest:
        raise ValueError("its digest is not that of its content")
    return msgspec.json.decode(sealed.manifest, type=Manifest)
