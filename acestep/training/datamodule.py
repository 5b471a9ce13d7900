"""LightningDataModules of training: one endless stream of batches, which can be resumed at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from acestep.data import (
    Buckets,
    EpochBatches,
    EpochIndex,
    Example,
    ExampleConfig,
    LatentBatch,
    LatentDataset,
    LatentStore,
    collate,
)

VALIDATION = ("validation", "valid", "val", "dev")
"""Split names of a store's validation songs."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(ExampleConfig):
    """Songs of a latent store, and how they are batched.

    Args:
        path: folder of a latent store, as ``python -m acestep preprocess`` writes it.
        batch_size: songs per batch and process.
        held_out: number of songs for the validation loss: from the store's ``validation`` split, or, where it has
            none, chosen by a hash and kept from training. Songs of its ``test`` split are never read.
        songs: use only the first songs of the store; ``None`` uses all.
        workers: loader processes; 0 reads in the training process.
        bucket: steps in a pool within which songs of similar length share a batch, see ``acestep.data.Buckets``;
            ``None`` mixes all lengths.
        pack_frames: largest number of latent frames in a batch, padding included; a batch then holds as many songs of
            similar length as fit, up to ``batch_size``. ``None`` fills every batch.
    """

    path: str
    batch_size: int = 1
    held_out: int = 16
    songs: int | None = None
    workers: int = 0
    bucket: int | None = None
    pack_frames: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bucket is not None and self.bucket < 1:
            raise ValueError(f"data.bucket={self.bucket}: need at least 1 step, or null to mix all lengths")
        if self.pack_frames is not None and self.pack_frames < (self.crop_frames or 1):
            raise ValueError(
                f"data.pack_frames={self.pack_frames}: need at least data.crop_frames={self.crop_frames}, so that a "
                "song fits; raise it, or crop shorter"
            )
        if self.batch_size < 1:
            raise ValueError(f"data.batch_size={self.batch_size}: need at least 1")
        if self.held_out < 0:
            raise ValueError(f"data.held_out={self.held_out}: need >= 0 (0 keeps none for validation)")
        if self.songs is not None and self.songs < 1:
            raise ValueError(f"data.songs={self.songs}: need at least 1, or null for all")
        if self.workers < 0:
            raise ValueError(f"data.workers={self.workers}: need >= 0 (0 reads in the training process)")

    def load(self, seed: int) -> tuple[LatentDataset, LatentDataset]:
        """The store's songs for training, and held-out songs without augmentation."""
        store = LatentStore(self.path)
        splits = [split or "train" for split in store.column("split")]
        rows = [row for row, split in enumerate(splits) if split == "train"][: self.songs]
        held_out = [row for row, split in enumerate(splits) if split in VALIDATION][: self.held_out]
        training = LatentDataset(store, seed=seed, rows=rows, config=self)
        if self.held_out >= len(training) and not held_out:
            raise ValueError(
                f"data.held_out={self.held_out}: the store {self.path} gives {len(training)} songs; hold out fewer"
            )
        plain = ExampleConfig(crop_frames=self.crop_frames)
        if held_out:
            return training, LatentDataset(store, seed=seed, rows=held_out, config=plain)
        training, validation = training.split(self.held_out)
        return training, LatentDataset(store, seed=seed, rows=validation.rows, config=plain)


class ResumableDataModule(LightningDataModule):
    """Training batches as a pure function of ``(seed, step, rank)``; validation batches in a fixed order.

    A subclass sets ``training`` and ``validation``, data sets that are indexed by an ``EpochIndex``, and ``collate``.
    """

    training: Dataset[Any]
    validation: Dataset[Any]

    def __init__(self, batch_size: int, workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def collate(self, examples: Sequence[Any]) -> Any:
        raise NotImplementedError

    def buckets(self) -> Buckets | None:
        """How songs are batched by length; ``None`` mixes all lengths."""
        return None

    def facts(self) -> dict[str, Any]:
        """The record of the data in ``run.json``."""
        return {"songs": self.sizes[0], "held_out": self.sizes[1]}

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of examples for training and for validation."""
        return len(self.training), len(self.validation)  # type: ignore[arg-type]  # torch's Dataset has no __len__

    def train_dataloader(self) -> DataLoader[Any]:
        """All remaining batches of the run."""
        trainer = self.trainer
        assert trainer is not None
        batches = EpochBatches(
            self.sizes[0],
            self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            buckets=self.buckets(),
        )
        total, done = (steps * trainer.accumulate_grad_batches for steps in (trainer.max_steps, trainer.global_step))
        return ResumableDataLoader(
            self.training,
            batch_sampler=ResumableBatchSampler(batches, total=total, done=done),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=self.collate,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors of a batch; Lightning itself would not know its class."""
        return batch.to(device)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.validation, batch_size=self.validation_batch_size(), collate_fn=self.collate)

    def validation_batch_size(self) -> int:
        return self.batch_size


class LatentDataModule(ResumableDataModule):
    """The songs of a latent store."""

    training: LatentDataset
    validation: LatentDataset

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__(config.batch_size, config.workers, seed)
        self.config = config
        self.training, self.validation = config.load(seed)
        self.store = self.training.store

    def buckets(self) -> Buckets | None:
        config = self.config
        if config.bucket is None and config.pack_frames is None:
            return None
        return Buckets(frames=self.training.frames, pool=config.bucket or Buckets.pool, budget=config.pack_frames)

    def validation_batch_size(self) -> int:
        """As many songs as fit in ``pack_frames``, whatever their lengths."""
        if self.config.pack_frames is None:
            return self.batch_size
        return max(1, min(self.batch_size, self.config.pack_frames // int(self.validation.frames.max(initial=1))))

    def facts(self) -> dict[str, Any]:
        """``padding`` is the share of padding in the first epoch's batches of one process."""
        batches = EpochBatches(len(self.training), self.batch_size, seed=self.seed, buckets=self.buckets())
        padding = f"{batches.padding(self.training.frames):.1%}"
        return {**store_facts(self.store), **super().facts(), "padding": padding}

    def collate(self, examples: Sequence[Example]) -> LatentBatch:
        return collate(examples)


def store_facts(store: LatentStore) -> dict[str, Any]:
    """Path and fingerprint of ``store``, for ``run.json``."""
    return {"path": str(store.folder), "fingerprint": store.fingerprint}


class ResumableBatchSampler(Sampler[list[EpochIndex]]):
    """The batches of a whole run, over all epochs, from number ``done`` on; its length includes those done.

    Lightning sees one long epoch: accumulation then never stops at an epoch's end, and its batch index, restored from
    a checkpoint, is the position in the run.
    """

    def __init__(self, batches: EpochBatches, *, total: int, done: int) -> None:
        self.batches, self.total, self.done = batches, total, done

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        self.batches.seek(self.done)
        return islice(chain.from_iterable(repeat(self.batches)), self.total - self.done)


class ResumableDataLoader(DataLoader[Any]):
    """A loader without state: its sampler starts at the run's step. The methods tell Lightning that it resumes."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """There is nothing to load."""
