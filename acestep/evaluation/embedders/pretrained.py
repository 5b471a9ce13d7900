"""Checkpoints of other libraries, from a folder or the local cache: a metric never downloads anything by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from acestep.evaluation.embedders.base import MissingWeightsError


def load_local(key: str, weights: str, *classes: Any) -> list[Any]:
    """``from_pretrained(weights)`` of each of ``classes``, without a network.

    Args:
        key: of the configuration, for the message.
        weights: a folder, or a hub id in the local cache.
        classes: of transformers, or with the same ``from_pretrained``.

    Raises:
        MissingWeightsError: the checkpoint is not on this machine; names the command that downloads it.
    """
    try:
        # As a folder: some classes look online for adapters of a hub id even with local_files_only.
        folder = weights if Path(weights).is_dir() else snapshot_download(weights, local_files_only=True)
        return [one.from_pretrained(folder, local_files_only=True) for one in classes]
    except (OSError, HFValidationError) as error:
        raise MissingWeightsError(
            f"{key}={weights}: not on this machine; run `hf download {weights}` once with a network, or name a folder "
            "that holds it"
        ) from error
