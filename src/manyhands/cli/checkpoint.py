"""`manyhands checkpoint`: what is kept, whether it is whole, and the model out of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from manyhands.checkpoints.files import put_together, write_tensors
from manyhands.checkpoints.model import model_of
from manyhands.checkpoints.options import to_resume
from manyhands.checkpoints.store import PLAIN, TENSORS, Store, found_at
from manyhands.cli.words import count, number, size
from manyhands.errors import CheckpointError, ConfigurationError
from manyhands.sharing.tree import Foreign


def listing(url: str) -> int:
    """Prints all under a URL, the newest first, torn ones too."""
    console, store = Console(highlight=False), Store(url)
    names = _some(store)
    table = Table(box=None, pad_edge=False)
    for heading in ("checkpoint", "version", "samples", "size", "written"):
        figure = heading in ("version", "samples", "size")
        table.add_column(heading, justify="right" if figure else "left", no_wrap=True)
    for name in names:
        try:
            it = store.manifest(name)
        except CheckpointError as error:
            table.add_row(name, "–", "–", "–", str(error).partition(": ")[2], style="red")
            continue
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(it.created))
        table.add_row(name, str(it.version), number(it.samples), size(it.bytes), written)
    console.print(table)
    return 0


def verify(url: str) -> int:
    """Reads all under a URL, or the one there; 1 where one of them is torn or damaged."""
    store, named = found_at(url)
    bad = 0
    for name in _some(store) if named is None else [named]:
        try:
            manifest, _ = store.verified(name)
            print(f"{name}  whole  {size(manifest.bytes)}")
        except CheckpointError as error:
            bad += 1
            print(f"{name}  NOT WHOLE  {error}")
    return 1 if bad else 0


def export_model(url: str, out: Path) -> int:
    """Writes the model of the newest checkpoint there, or of this one: .safetensors, or for torch .pt."""
    if not out.parent.is_dir():
        raise ConfigurationError(f"{out} cannot be written: there is no folder {out.parent}; make it first")
    kept, _ = to_resume(url)
    store, name = found_at(kept.url)
    assert name is not None
    manifest, contents = store.verified(name)
    tensors = model_of(manifest, put_together(contents[TENSORS], contents[PLAIN]))
    if out.suffix == ".safetensors":
        write_tensors(tensors, out)
    elif out.suffix in (".pt", ".pth"):
        _write_for_torch(tensors, out)
    else:
        raise ConfigurationError(f"{out} is of no kind that is known: name it .safetensors, .pt or .pth")
    print(f"{out}: {count(len(tensors), 'tensor')} of version {manifest.version}, run {manifest.run}")
    return 0


def _write_for_torch(tensors: Mapping[str, Foreign], out: Path) -> None:
    try:
        import torch
    except ImportError:
        raise ConfigurationError(
            f"{out} needs PyTorch, which is not installed here: pip install manyhands[torch], or export to "
            ".safetensors"
        ) from None
    from manyhands.frameworks.torch.leaves import tensor_of

    torch.save({name: tensor_of(each) for name, each in tensors.items()}, out)


def _some(store: Store) -> list[str]:
    names = store.names()
    if not names:
        raise ConfigurationError(
            f"there is no checkpoint under {store.url}: give what --checkpoint was given"
        )
    return names
