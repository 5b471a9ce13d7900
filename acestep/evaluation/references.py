"""What sets are compared with: a folder of recordings, a latent store, or the prompts' own recordings."""

from __future__ import annotations

from pathlib import Path

import torch

from acestep.audio.audio import Audio
from acestep.data.settings import SETTINGS_FILE, autoencoder_settings
from acestep.data.sources import find_songs
from acestep.data.store import LatentStore
from acestep.evaluation.distributed import Ranks
from acestep.pipeline.pipeline import Pipeline


def reference_recordings(path: str, pipeline: Pipeline, out: Path, ranks: Ranks) -> list[Path]:
    """Recordings in ``path``; those of a latent store are decoded to ``out`` first, by all ranks together.

    Decoded songs carry the autoencoder's traces as generated ones do, so a distance to them is the generator's alone.

    Raises:
        ValueError: nothing to compare with, or a store of another autoencoder.
    """
    root = Path(path)
    if not (root / SETTINGS_FILE).is_file():
        found = find_songs(root, "eval.reference")
        if len(found) < 2:
            raise ValueError(f"eval.reference={path}: fewer than 2 recordings there; name a folder of songs or a store")
        return found
    store = LatentStore(root)
    store.check(autoencoder_settings(pipeline.autoencoder))
    paths = [out / f"{sha256[:32]}.flac" for sha256 in store.sha256]
    for index in ranks.share(range(len(store))):
        if not paths[index].is_file():
            mean, _ = store.latents(index)
            decoded = pipeline.decode(torch.from_numpy(mean.astype("float32"))[None])[0].cpu()
            Audio(decoded.clamp(-1, 1), pipeline.autoencoder.sample_rate).save(paths[index])
    ranks.wait()
    return paths
