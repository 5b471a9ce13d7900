"""Checkpoints by Hugging Face Hub id: downloaded once, then read from the Hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

BUNDLE = "ACE-Step/Ace-Step1.5"
"""The repository of the autoencoder and text encoder of all families, with several models in folders."""
FILES = ("*.json", "*.safetensors", "*.txt", "silence_latent.pt")
"""Files to download: no code, no pickled weights."""
_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<folder>\w[\w.-]*))?")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/repository`` or ``owner/repository/folder``."""
    return _ID.fullmatch(name) is not None


def fetch(name: str) -> Path:
    """The local folder of a Hub id, downloaded if it is not in the cache.

    Raises:
        ValueError: the Hub has no such repository or folder, or it is not in the cache and there is no network.
    """
    match = _ID.fullmatch(name)
    assert match
    repository, folder = match["repository"], match["folder"]
    if repository == BUNDLE and not folder:
        raise ValueError(f"weights={name}: holds several models; name one of its folders, {BUNDLE}/acestep-v15-turbo")
    patterns = [f"{folder}/{pattern}" for pattern in FILES] if folder else list(FILES)
    try:
        path = Path(snapshot_download(repository, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"weights={name}: no such folder here, and the Hugging Face Hub does not give it ({reason}); check the "
            "name, or download it where there is a network and name the folder"
        ) from error
    if folder and not (path / folder).is_dir():
        raise ValueError(f"weights={name}: {repository} on the Hugging Face Hub has no folder {folder}")
    return path / folder if folder else path


def is_fetched(folder: Path) -> bool:
    """Whether ``folder`` is in the Hub's cache, where users do not put other parts of a checkpoint beside it."""
    return "snapshots" in (folder.parent.name, folder.parent.parent.name)
