"""Which layout a checkpoint is in, from its path, its shipped name or its name on the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from acestep.weights.checkpoint import Checkpoint
from acestep.weights.diffusers import is_diffusers, read_diffusers
from acestep.weights.hub import fetch, is_hub_id
from acestep.weights.native import is_native, read_native
from acestep.weights.training import is_training_state, read_training_state
from acestep.weights.upstream import is_language_model, is_upstream, read_upstream

SHIPPED = Path(__file__).parent.parent / "assets"
ADAPTER_CONFIG = "adapter_config.json"
"""As PEFT calls it."""
READERS = ((is_native, read_native), (is_upstream, read_upstream), (is_diffusers, read_diffusers))


def open_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """The checkpoint that ``path_or_name`` means, in any layout; see ``find_folder``.

    It is called as it was asked for: a shipped one by its name, wherever this package lies.
    """
    folder = find_folder(path_or_name)
    if is_training_state(folder):
        return read_training_state(folder, open_checkpoint)
    for recognises, read in READERS:
        if recognises(folder):
            return replace(read(folder), name=str(path_or_name))
    if is_language_model(folder):
        raise ValueError(f"weights={path_or_name}: a 5 Hz language model, which plans songs; name the folder of a DiT")
    if (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"weights={path_or_name}: an adapter, not a checkpoint; merge it first: "
            f"python -m acestep merge {path_or_name} TARGET"
        )
    raise ValueError(
        f"weights={path_or_name}: no checkpoint of a known layout there; need a folder with the config.json or "
        "model_index.json of an ACE-Step v1.5 model"
    )


@contextmanager
def named_by(key: str) -> Iterator[None]:
    """Inside, what is wrong with a checkpoint is told of ``key``, which names it here in place of ``weights``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("weights=", f"{key}=", 1)) from error


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint of a known layout."""
    return any(recognises(folder) for recognises, _ in READERS)


def find_folder(path_or_name: str | Path) -> Path:
    """Where ``path_or_name`` is: a shipped checkpoint, a folder, a run folder's ``weights/``, or fetched from the Hub.

    A training's checkpoint is a place too: a Lightning file, or a folder of shards.
    """
    folder = shipped_or_path(path_or_name)
    if is_training_state(folder):
        return folder
    if not folder.is_dir():
        if is_hub_id(str(path_or_name)):
            return fetch(str(path_or_name))
        names = sorted(path.name for path in SHIPPED.iterdir() if is_native(path)) if SHIPPED.is_dir() else []
        places = ", ".join(["a checkpoint folder", "a run folder", "a name on the Hugging Face Hub", *names])
        raise ValueError(f"weights={path_or_name}: no such folder; name one of: {places}")
    return folder / "weights" if (folder / "weights").is_dir() else folder


def shipped_or_path(path_or_name: str | Path) -> Path:
    """The folder that is shipped under this name; else the path that it is."""
    shipped = SHIPPED / str(path_or_name)
    is_name = Path(path_or_name).name == str(path_or_name) != ""
    return shipped if is_name and shipped.is_dir() else Path(path_or_name)


def folder_hash(folder: Path) -> str:
    """SHA-256 over every file in ``folder``, names and contents, in order of name; or over the one file it is."""
    digest = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
