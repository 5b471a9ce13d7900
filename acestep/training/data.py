"""The latent store as Lightning reads it: one endless stream of batches, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from acestep.data import (
    Draw,
    EpochBatches,
    Example,
    LatentBatch,
    LatentDataset,
    LatentStore,
    TaskMix,
    Variation,
    collate,
)
from acestep.data.captions import CaptionChange

VALIDATION = ("validation", "valid", "val", "dev")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which songs, how long and how many at a time.

    Args:
        path: folder of a latent store, as ``python -m acestep preprocess`` writes it.
        batch_size: songs per batch and process.
        crop_frames: longest piece of a song in a batch, at random; ``None`` takes songs whole.
        held_out: songs kept from training for the validation loss; the store's own ``validation`` songs, where it has
            any, go before those that a hash chooses. Its ``test`` songs are never read.
        songs: use only this many of the store, for a quick look; ``None`` uses all.
        workers: loader processes; 0 reads in the training process.
        bucket: steps in a pool within which songs of like length share a batch, see ``EpochBatches``; ``None`` mixes
            all lengths.
        captions: changes of captions, one after another, such as ``acestep.data.captions.ShuffleTags``.
        tasks: shares of cover and repaint training; ``None`` is text-to-music alone.
    """

    path: str
    batch_size: int = 1
    crop_frames: int | None = None
    held_out: int = 16
    songs: int | None = None
    workers: int = 0
    bucket: int | None = None
    captions: tuple[CaptionChange, ...] | None = None
    tasks: TaskMix | None = None

    def __post_init__(self) -> None:
        if self.bucket is not None and self.bucket < 1:
            raise ValueError(f"data.bucket={self.bucket}: need at least 1 step, or null to mix all lengths")
        if self.batch_size < 1:
            raise ValueError(f"data.batch_size={self.batch_size}: need at least 1")
        if self.workers < 0:
            raise ValueError(f"data.workers={self.workers}: need >= 0 (0 reads in the training process)")


class SongStream(LightningDataModule):
    """Training batches as a pure function of ``(seed, step, rank)``; validation batches always the same.

    A subclass sets ``training`` and ``validation``, data sets that are indexed by a ``Draw``, and says what a batch is.
    """

    training: Dataset[Any]
    validation: Dataset[Any]

    def __init__(self, batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def collate(self, examples: Sequence[Any]) -> Any:
        """The examples as one batch."""
        raise NotImplementedError

    def bucketed(self) -> dict[str, Any]:
        """Lengths and pool of ``EpochBatches``, where batches are to hold songs of like length."""
        return {}

    def train_dataloader(self) -> DataLoader[Any]:
        """All batches of the run that are still to come."""
        trainer = self.trainer
        batches = EpochBatches(
            len(self.training),
            self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            **self.bucketed(),
        )
        accumulate = trainer.accumulate_grad_batches
        run = RunBatches(batches, total=trainer.max_steps * accumulate, done=trainer.global_step * accumulate)
        return RunLoader(
            self.training,
            batch_sampler=run,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=self.collate,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Tensors move; words stay."""
        return batch.to(device)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out songs, in order."""
        return DataLoader(self.validation, batch_size=self.batch_size, collate_fn=self.collate)


class LatentData(SongStream):
    """The songs of a latent store."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__(config.batch_size, config.workers, seed)
        self.config = config
        self.store = LatentStore(config.path)
        splits = [split or "train" for split in self.store.column("split")]
        rows = [row for row, split in enumerate(splits) if split == "train"][: config.songs]
        kept = [row for row, split in enumerate(splits) if split in VALIDATION][: config.held_out]
        variation = Variation(crop_frames=config.crop_frames, captions=tuple(config.captions or ()), tasks=config.tasks)
        songs = LatentDataset(self.store, seed=seed, rows=rows, variation=variation)
        if config.held_out >= len(songs) and not kept:
            raise ValueError(
                f"data.held_out={config.held_out}: the store {config.path} gives {len(songs)} songs; hold out fewer"
            )
        plain = Variation(crop_frames=config.crop_frames)
        if kept:
            self.training, self.validation = songs, LatentDataset(self.store, seed=seed, rows=kept, variation=plain)
        else:
            self.training, held_out = songs.split(config.held_out)
            self.validation = LatentDataset(self.store, seed=seed, rows=held_out.rows, variation=plain)

    def bucketed(self) -> dict[str, Any]:
        """As the config asks."""
        if self.config.bucket is None:
            return {}
        return {"frames": self.training.frames, "pool": self.config.bucket}

    def facts(self) -> dict[str, Any]:
        """What the run's record says about the data."""
        return {
            "path": str(self.store.folder),
            "fingerprint": self.store.fingerprint,
            "songs": len(self.training),
            "held_out": len(self.validation),
        }

    def collate(self, examples: Sequence[Example]) -> LatentBatch:
        """The examples as one batch."""
        return collate(examples)


class RunBatches(Sampler[list[Draw]]):
    """The batches of a whole run, epoch after epoch, from number ``done`` on; its length counts those done too.

    Lightning sees one long epoch: accumulation then never stops short at an epoch's end, and its batch index, restored
    with a checkpoint, is the position in the run.
    """

    def __init__(self, batches: EpochBatches, *, total: int, done: int) -> None:
        self.batches, self.total, self.done = batches, total, done

    def __len__(self) -> int:
        """Batches of the run, those done included."""
        return self.total

    def __iter__(self) -> Iterator[list[Draw]]:
        """Batch ``done``, ``done + 1``, and so on."""
        self.batches.seek(self.done)
        return islice(chain.from_iterable(repeat(self.batches)), self.total - self.done)


class RunLoader(DataLoader[Any]):
    """A loader that needs no state to resume: its sampler starts where the run's step says."""

    def state_dict(self) -> dict[str, int]:
        """Nothing; its presence tells Lightning that the loader resumes."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to do."""
