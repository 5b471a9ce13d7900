"""The latent store as Lightning reads it: one endless stream of batches, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from acestep.data import (
    Buckets,
    Crop,
    Draw,
    EpochBatches,
    Example,
    LatentBatch,
    LatentDataset,
    LatentStore,
    TaskMix,
    Variation,
    Words,
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
        crop_frames: longest piece of a song in a batch; ``None`` takes songs whole.
        crop: where a piece begins, at ``random`` or at the song's ``head``.
        words: whether a piece has its own lyrics and duration, or those of the ``whole`` song.
        frozen: draw each song's latents once and for all; else every epoch draws anew.
        held_out: songs kept from training for the validation loss; the store's own ``validation`` songs, where it has
            any, go before those that a hash chooses. Its ``test`` songs are never read.
        songs: use only this many of the store, for a quick look; ``None`` uses all.
        workers: loader processes; 0 reads in the training process.
        bucket: steps in a pool within which songs of like length share a batch, see ``acestep.data.Buckets``; ``None``
            mixes all lengths.
        pack_frames: latent frames of a batch at most, padding included; a batch then holds as many songs of like
            length as fit, up to ``batch_size``. ``None`` fills every batch.
        captions: changes of captions, one after another: ``ShuffleTags``, ``GenreOnly`` and ``OwnTag`` of
            ``acestep.data.captions``.
        untold: share of the songs that do not tell their tempo, and of those that do not tell key or time signature,
            drawn anew in every epoch, so that a model can do without.
        tasks: shares of cover and repaint training; what is left is text-to-music.
    """

    path: str
    batch_size: int = 1
    crop_frames: int | None = None
    crop: Crop = Crop.random
    words: Words = Words.piece
    frozen: bool = False
    held_out: int = 16
    songs: int | None = None
    workers: int = 0
    bucket: int | None = None
    pack_frames: int | None = None
    captions: tuple[CaptionChange, ...] = ()
    untold: float = 0.0
    tasks: TaskMix = field(default_factory=TaskMix)

    def __post_init__(self) -> None:
        for name, kind in (("crop", Crop), ("words", Words)):
            object.__setattr__(self, name, kind(getattr(self, name)))
        object.__setattr__(self, "captions", tuple(self.captions))
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

    def buckets(self) -> Buckets | None:
        """Where batches are to hold songs of like length: how."""
        return None

    def train_dataloader(self) -> DataLoader[Any]:
        """All batches of the run that are still to come."""
        trainer = self.trainer
        batches = EpochBatches(
            len(self.training),
            self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            buckets=self.buckets(),
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
        return DataLoader(self.validation, batch_size=self.held_out_at_once(), collate_fn=self.collate)

    def held_out_at_once(self) -> int:
        """Held-out songs in a batch."""
        return self.batch_size


class LatentData(SongStream):
    """The songs of a latent store."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__(config.batch_size, config.workers, seed)
        self.config = config
        self.store = LatentStore(config.path)
        splits = [split or "train" for split in self.store.column("split")]
        rows = [row for row, split in enumerate(splits) if split == "train"][: config.songs]
        kept = [row for row, split in enumerate(splits) if split in VALIDATION][: config.held_out]
        variation = Variation(
            crop_frames=config.crop_frames,
            crop=config.crop,
            words=config.words,
            frozen=config.frozen,
            captions=config.captions,
            untold=config.untold,
            tasks=config.tasks,
        )
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

    def buckets(self) -> Buckets | None:
        """As the config asks."""
        config = self.config
        if config.bucket is None and config.pack_frames is None:
            return None
        if not isinstance(self.training, LatentDataset):
            raise ValueError(
                "data.bucket, data.pack_frames: these are lengths of latents, and lessons are not; use null"
            )
        return Buckets(frames=self.training.frames, pool=config.bucket or Buckets.pool, budget=config.pack_frames)

    def held_out_at_once(self) -> int:
        """As many as fit, however long they are."""
        if self.config.pack_frames is None:
            return self.batch_size
        return max(1, min(self.batch_size, self.config.pack_frames // int(self.validation.frames.max(initial=1))))

    def facts(self) -> dict[str, Any]:
        """What the run's record says about the data."""
        return {
            "path": str(self.store.folder),
            "fingerprint": self.store.fingerprint,
            "songs": len(self.training),
            "held_out": len(self.validation),
            **self._padding(),
        }

    def _padding(self) -> dict[str, str]:
        """Of latents in the batches of the first epoch, where one process makes them; lessons have none."""
        if not isinstance(self.training, LatentDataset):
            return {}
        batches = EpochBatches(len(self.training), self.batch_size, seed=self.seed, buckets=self.buckets())
        return {"padding": f"{batches.padding(self.training.frames):.1%}"}

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
