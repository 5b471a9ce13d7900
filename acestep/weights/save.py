"""Write a checkpoint to a folder, in any layout, atomically."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from acestep.files import replacing
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.diffusers import write_diffusers
from acestep.weights.native import write_native
from acestep.weights.open import is_checkpoint
from acestep.weights.upstream import write_upstream

WRITERS: Mapping[str, Callable[..., None]] = {
    "native": write_native,
    "upstream": write_upstream,
    "diffusers": write_diffusers,
}


def save_checkpoint(
    checkpoint: Checkpoint,
    folder: str | Path,
    layout: str = "native",
    dtype: torch.dtype | None = None,
    base: Path | None = None,
) -> Path:
    """Write ``checkpoint`` to ``folder``; a checkpoint that is there is replaced when all is written.

    Tensors are written one by one, so that no more than one is in memory at a time.

    Args:
        checkpoint: what to write.
        folder: its parent is created if needed.
        layout: ``native``, ``upstream`` or ``diffusers``.
        dtype: of the network's and the autoencoder's tensors in the files; ``None`` keeps theirs.
        base: a native checkpoint beside ``folder``; tensors that are equal to the base's are not written again.

    Raises:
        ValueError: an unknown layout, a ``base`` with another layout than native, or a folder with other files.
    """
    if layout not in WRITERS:
        raise ValueError(f"to={layout}: not a layout that can be written; use {', '.join(WRITERS)}")
    if base is not None and layout != "native":
        raise ValueError(f"base={base}: only the native layout can refer to a base; leave it out for {layout}")
    folder = Path(folder)
    if folder.exists() and not is_checkpoint(folder) and any(folder.iterdir()):
        raise ValueError(f"{folder}: holds files but no checkpoint; name a new or empty folder")
    with replacing(folder) as aside:
        WRITERS[layout](checkpoint, aside, dtype, **({} if base is None else {"base": base}))
    return folder
