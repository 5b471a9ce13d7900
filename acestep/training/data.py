"""The latent store as Lightning reads it: one endless stream of batches, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from acestep.data import Draw, EpochBatches, LatentBatch, LatentDataset, LatentStore, collate


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which songs, how long and how many at a time.

    Args:
        path: folder of a latent store, as ``python -m acestep preprocess`` writes it.
        batch_size: songs per batch and process.
        crop_frames: longest piece of a song in a batch, at random; ``None`` takes songs whole.
        held_out: songs kept from training for the validation loss.
        songs: use only this many of the store, for a quick look; ``None`` uses all.
        workers: loader processes; 0 reads in the training process.
    """

    path: str
    batch_size: int = 1
    crop_frames: int | None = None
    held_out: int = 16
    songs: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"data.batch_size={self.batch_size}: need at least 1")
        if self.workers < 0:
            raise ValueError(f"data.workers={self.workers}: need >= 0 (0 reads in the training process)")


class LatentData(LightningDataModule):
    """Training batches as a pure function of ``(seed, step, rank)``; validation batches always the same."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.store = LatentStore(config.path)
        rows = range(len(self.store))[: config.songs]
        songs = LatentDataset(self.store, crop_frames=config.crop_frames, seed=seed, rows=rows)
        if config.held_out >= len(songs):
            raise ValueError(
                f"data.held_out={config.held_out}: the store {config.path} gives {len(songs)} songs; hold out fewer"
            )
        self.training, self.validation = songs.split(config.held_out)

    def facts(self) -> dict[str, Any]:
        """What the run's record says about the data."""
        return {
            "path": str(self.store.folder),
            "fingerprint": self.store.fingerprint,
            "songs": len(self.training),
            "held_out": len(self.validation),
        }

    def train_dataloader(self) -> DataLoader[LatentBatch]:
        """All batches of the run that are still to come."""
        trainer = self.trainer
        batches = EpochBatches(
            len(self.training),
            self.config.batch_size,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        accumulate = trainer.accumulate_grad_batches
        run = RunBatches(batches, total=trainer.max_steps * accumulate, done=trainer.global_step * accumulate)
        return RunLoader(
            self.training,
            batch_sampler=run,
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
            collate_fn=collate,
        )

    def transfer_batch_to_device(self, batch: LatentBatch, device: torch.device, dataloader_idx: int) -> LatentBatch:
        """Tensors move; words stay."""
        return batch.to(device)

    def val_dataloader(self) -> DataLoader[LatentBatch]:
        """The held-out songs, in order."""
        return DataLoader(self.validation, batch_size=self.config.batch_size, collate_fn=collate)


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


class RunLoader(DataLoader[LatentBatch]):
    """A loader that needs no state to resume: its sampler starts where the run's step says."""

    def state_dict(self) -> dict[str, int]:
        """Nothing; its presence tells Lightning that the loader resumes."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to do."""
