"""Open a checkpoint by its path, its shipped name or its Hub id, in any layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from acestep.files import file_hash
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.diffusers import is_diffusers, read_diffusers
from acestep.weights.hub import fetch, is_hub_id
from acestep.weights.lightning import is_training_checkpoint, read_training_checkpoint
from acestep.weights.native import is_native, read_native
from acestep.weights.upstream import is_language_model, is_upstream, read_upstream

SHIPPED = Path(__file__).parent.parent / "assets"
READERS = ((is_native, read_native), (is_upstream, read_upstream), (is_diffusers, read_diffusers))


def open_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """The checkpoint at ``path_or_name``, in any layout; see ``find_folder``. Its ``name`` is ``path_or_name``.

    Only configs and file headers are read here, so that the result can be passed on instead of opened again.

    Raises:
        ValueError: there is no checkpoint of a known layout.
    """
    folder = find_folder(path_or_name)
    if is_training_checkpoint(folder):
        return read_training_checkpoint(folder, open_checkpoint)
    for is_layout, read in READERS:
        if is_layout(folder):
            return replace(read(folder), name=str(path_or_name))
    if is_language_model(folder):
        raise ValueError(f"weights={path_or_name}: a 5 Hz language model, which plans songs; name the folder of a DiT")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"weights={path_or_name}: an adapter, not a checkpoint; merge it first: "
            f"python -m acestep merge {path_or_name} TARGET"
        )
    raise ValueError(
        f"weights={path_or_name}: no checkpoint of a known layout there; need a folder with the config.json or "
        "model_index.json of an ACE-Step v1.5 model"
    )


@contextmanager
def named_in_errors(key: str) -> Iterator[None]:
    """Error messages about ``weights=`` say ``key=`` instead, where another config key names the checkpoint."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("weights=", f"{key}=", 1)) from error


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint of a known layout."""
    return any(is_layout(folder) for is_layout, _ in READERS)


def find_folder(path_or_name: str | Path) -> Path:
    """The folder of a shipped checkpoint, a folder, a run folder's ``weights/``, or a download from the Hub.

    A training checkpoint is returned as it is: a Lightning file, or a folder of shards.

    Raises:
        ValueError: there is no such folder.
    """
    folder = shipped_or_path(path_or_name)
    if is_training_checkpoint(folder):
        return folder
    if not folder.is_dir():
        if is_hub_id(str(path_or_name)):
            return fetch(str(path_or_name))
        names = sorted(path.name for path in SHIPPED.iterdir() if is_native(path)) if SHIPPED.is_dir() else []
        places = ", ".join(["a checkpoint folder", "a run folder", "a name on the Hugging Face Hub", *names])
        raise ValueError(f"weights={path_or_name}: no such folder; name one of: {places}")
    return folder / "weights" if (folder / "weights").is_dir() else folder


def shipped_or_path(path_or_name: str | Path) -> Path:
    """The folder that is shipped under this name, or else the path itself."""
    shipped = SHIPPED / str(path_or_name)
    is_name = Path(path_or_name).name == str(path_or_name) != ""
    return shipped if is_name and shipped.is_dir() else Path(path_or_name)


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names, sizes and contents of all files in ``folder``, or of the one file ``folder``."""
    digest = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
        digest.update(bytes.fromhex(file_hash(path)))
    return digest.hexdigest()
