"""Songs of a latent store as examples and batches: random crops, padding, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset

from acestep.data.sampler import Draw
from acestep.data.store import LatentStore
from acestep.types import Posterior, Song


@dataclass(frozen=True)
class Example:
    """One song, or a crop of it, as stored: float16. ``song.seconds`` is the duration of what is here."""

    song: Song
    mean: Float[Tensor, "t c"]
    scale: Float[Tensor, "t c"]
    index: int


@dataclass(frozen=True)
class LatentBatch:
    """Songs of one batch with their posteriors, zero-padded to the longest; ``frame_mask`` is True on real frames."""

    songs: list[Song]
    mean: Float[Tensor, "b t c"]
    scale: Float[Tensor, "b t c"]
    frame_mask: Bool[Tensor, "b t"]
    indices: list[int]

    def __len__(self) -> int:
        """How many songs."""
        return len(self.songs)

    @property
    def frames(self) -> list[int]:
        """Real frames of each song."""
        return [int(count) for count in self.frame_mask.sum(1)]

    def sample(self, generator: torch.Generator) -> Float[Tensor, "b t c"]:
        """One draw of the latents from the posteriors, float32, zero on padding."""
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device).to(self.mean.device)
        return Posterior(self.mean.float(), self.scale.float()).sample(noise)

    def to(self, device: torch.device | str) -> LatentBatch:
        """The same batch on ``device``."""
        return replace(
            self, mean=self.mean.to(device), scale=self.scale.to(device), frame_mask=self.frame_mask.to(device)
        )

    def pin_memory(self) -> LatentBatch:
        """The same batch in page-locked memory, as ``DataLoader(pin_memory=True)`` asks."""
        return replace(
            self,
            mean=self.mean.pin_memory(),
            scale=self.scale.pin_memory(),
            frame_mask=self.frame_mask.pin_memory(),
        )


class LatentDataset(Dataset[Example]):
    """Songs of a store, whole, or cropped at random to at most ``crop_frames``.

    The crop of song ``i`` in epoch ``e`` is a function of ``(seed, e, i)`` alone. Indexed by a ``Draw``, or by a plain
    number, which means epoch 0. ``rows`` restricts it to some songs of the store.
    """

    def __init__(
        self,
        store: str | Path | LatentStore,
        *,
        crop_frames: int | None = None,
        seed: int = 0,
        rows: Sequence[int] | None = None,
    ) -> None:
        """Open ``store`` if it is a path."""
        if crop_frames is not None and crop_frames < 1:
            raise ValueError(f"crop_frames={crop_frames}: need at least 1, or none for whole songs")
        self.store = store if isinstance(store, LatentStore) else LatentStore(store)
        self.rows = np.arange(len(self.store)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.crop_frames = crop_frames
        self.seed = seed

    def __len__(self) -> int:
        """How many songs."""
        return len(self.rows)

    def __getitem__(self, draw: Draw | int) -> Example:
        """The example that ``draw`` names."""
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        row = int(self.rows[index])
        song = self.store.song(row)
        frames = int(self.store.frames[row])
        first = 0
        if self.crop_frames is not None and frames > self.crop_frames:
            first = int(np.random.default_rng((self.seed, epoch, row)).integers(frames - self.crop_frames + 1))
            frames = self.crop_frames
            song = replace(song, seconds=frames / self.store.frames_per_second)
        mean, scale = self.store.latents(row, first, frames)
        return Example(song, torch.tensor(mean), torch.tensor(scale), row)

    def split(self, held_out: int, seed: int = 0) -> tuple[LatentDataset, LatentDataset]:
        """All songs but ``held_out`` of them, and those.

        Songs are ranked by a hash of ``seed`` and their audio, so that the choice does not depend on the order in which
        they were stored.
        """
        if not 0 <= held_out < len(self):
            raise ValueError(f"held_out={held_out}: need at least 0 and fewer than the {len(self)} songs of the store")
        ranks = [sha256(f"{seed}/{self.store.sha256[row]}".encode()).digest() for row in self.rows]
        order = self.rows[sorted(range(len(ranks)), key=ranks.__getitem__)]
        return self._only(np.sort(order[held_out:])), self._only(np.sort(order[:held_out]))

    def _only(self, rows: np.ndarray) -> LatentDataset:
        return LatentDataset(self.store, crop_frames=self.crop_frames, seed=self.seed, rows=rows)


def collate(examples: Sequence[Example]) -> LatentBatch:
    """The examples as one batch, padded to the longest."""
    frames = torch.tensor([len(example.mean) for example in examples])
    shape = (len(examples), int(frames.max()), examples[0].mean.shape[1])
    mean, scale = torch.zeros(shape, dtype=examples[0].mean.dtype), torch.zeros(shape, dtype=examples[0].scale.dtype)
    for row, example in enumerate(examples):
        mean[row, : len(example.mean)] = example.mean
        scale[row, : len(example.scale)] = example.scale
    return LatentBatch(
        songs=[example.song for example in examples],
        mean=mean,
        scale=scale,
        frame_mask=torch.arange(shape[1]) < frames[:, None],
        indices=[example.index for example in examples],
    )
