"""Songs of a latent store as training examples and batches: crops with matching text, sampled tasks, padding, masks."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from acestep.data.captions import CaptionParts, CaptionTransform, apply_transforms
from acestep.data.sampler import EpochIndex
from acestep.data.store import IntArray, LatentStore
from acestep.data.text import crop_lyrics
from acestep.songs import Song
from acestep.types import Posterior


class Crop(Enum):
    """Where a crop of a longer song starts: at ``random``, or at its ``head``, as in upstream's trainer."""

    random = "random"
    head = "head"


class CropText(Enum):
    """Lyrics and duration in the prompt of a crop.

    ``piece``: the lines sung in the crop, where their times are known, and the crop's duration. ``whole``: lyrics and
    duration of the whole song, as in upstream's trainer.
    """

    piece = "piece"
    whole = "whole"


@dataclass(frozen=True)
class SampledTask:
    """A task by its name in prompts.

    Attributes:
        task: ``text2music``, ``cover`` or ``repaint``.
        span: frames to generate, first and one past the last; ``None`` generates all.
    """

    task: str = "text2music"
    span: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class TaskMix:
    """Probabilities of the training tasks; text-to-music has the rest.

    Args:
        cover: of starting from the song's own latents, through the 5 Hz codes.
        repaint: of generating a span, with the rest of the song given.
        shortest: least share of the song in a repainted span.
        longest: largest share.
    """

    cover: float = 0.0
    repaint: float = 0.0
    shortest: float = 0.1
    longest: float = 0.6

    def __post_init__(self) -> None:
        if min(self.cover, self.repaint) < 0 or self.cover + self.repaint > 1:
            raise ValueError(
                f"data.tasks: cover={self.cover:g}, repaint={self.repaint:g}: need shares of at least 0, together at "
                "most 1"
            )
        if not 0 < self.shortest <= self.longest <= 1:
            raise ValueError(
                f"data.tasks: shortest={self.shortest:g}, longest={self.longest:g}: need 0 < shortest <= longest <= 1"
            )

    def __call__(self, frames: int, random: np.random.Generator) -> SampledTask:
        """Sample a task for a song of ``frames`` frames; always draws three numbers."""
        which, share, place = random.random(3)
        if which < self.cover:
            return SampledTask("cover")
        if which >= self.cover + self.repaint:
            return SampledTask()
        length = max(1, round(frames * (self.shortest + share * (self.longest - self.shortest))))
        first = int(place * (frames - length + 1))
        return SampledTask("repaint", (first, first + length))


@dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """How a stored song becomes a training example.

    Args:
        crop_frames: largest length in latent frames, longer songs are cropped; ``None`` takes songs whole.
        crop: where a crop starts, at ``random`` or at the song's ``head``.
        words: whether the prompt of a crop has the lyrics and duration of the ``piece`` or of the ``whole`` song.
        frozen: use the same sample of each song's posterior in every epoch, as upstream's cache does.
        captions: caption transforms, applied in order: ``ShuffleTags``, ``GenreOnly`` and ``DatasetTag`` of
            ``acestep.data.captions``.
        metadata_dropout: probability of leaving out the tempo of a song, and likewise key and time signature, so that
            the model also learns prompts without them.
        tasks: probabilities of cover and repaint training; the rest is text-to-music.
    """

    crop_frames: int | None = None
    crop: Crop = Crop.random
    words: CropText = CropText.piece
    frozen: bool = False
    captions: tuple[CaptionTransform, ...] = ()
    metadata_dropout: float = 0.0
    tasks: TaskMix = field(default_factory=TaskMix)

    def __post_init__(self) -> None:
        for name, kind in (("crop", Crop), ("words", CropText), ("captions", tuple)):
            object.__setattr__(self, name, kind(getattr(self, name)))
        if self.crop_frames is not None and self.crop_frames < 1:
            raise ValueError(f"data.crop_frames={self.crop_frames}: need at least 1, or none for whole songs")
        if not 0 <= self.metadata_dropout <= 1:
            raise ValueError(f"data.metadata_dropout={self.metadata_dropout:g}: need a share from 0 to 1")


@dataclass(frozen=True)
class Example:
    """One song or crop, with latents in float16 as stored.

    Attributes:
        song: the text; ``seconds`` is the duration for the prompt.
        mean: of the posterior.
        scale: of the posterior.
        index: the song's row in the store.
        task: to train on.
        lyrics_match: False for a crop with the lyrics of the whole song, for lack of their times.
    """

    song: Song
    mean: Float[Tensor, "t c"]
    scale: Float[Tensor, "t c"]
    index: int
    task: SampledTask = field(default_factory=SampledTask)
    lyrics_match: bool = True


@dataclass(frozen=True)
class LatentBatch:
    """Examples padded with zeros to the longest; ``frame_mask`` is False on padding."""

    songs: list[Song]
    mean: Float[Tensor, "b t c"]
    scale: Float[Tensor, "b t c"]
    frame_mask: Bool[Tensor, "b t"]
    indices: list[int]
    tasks: list[SampledTask] = field(default_factory=list)
    lyrics_match: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.songs)

    @property
    def frames(self) -> list[int]:
        """Length of each song without padding."""
        return [int(count) for count in self.frame_mask.sum(1)]

    def to(self, device: torch.device | str) -> LatentBatch:
        return self._map(lambda tensor: tensor.to(device))

    def pin_memory(self) -> LatentBatch:
        """For ``DataLoader(pin_memory=True)``."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> LatentBatch:
        return replace(self, mean=function(self.mean), scale=function(self.scale), frame_mask=function(self.frame_mask))


class LatentDataset(Dataset[Example]):
    """Songs of a store. Example ``i`` of epoch ``e`` is a function of ``(seed, e, i)`` alone.

    Indexed by an ``EpochIndex``, or by a plain number, which means epoch 0.

    Args:
        store: a store or its folder.
        seed: of everything that is random.
        rows: songs of the store to use; all by default.
        config: how songs become examples.
    """

    def __init__(
        self,
        store: str | Path | LatentStore,
        *,
        seed: int = 0,
        rows: Sequence[int] | IntArray | None = None,
        config: ExampleConfig | None = None,
    ) -> None:
        self.store = store if isinstance(store, LatentStore) else LatentStore(store)
        self.rows = np.arange(len(self.store)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.config = config or ExampleConfig()
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def frames(self) -> IntArray:
        """Frames of every example, (songs,)."""
        frames: IntArray = self.store.frames[self.rows]
        return np.minimum(frames, self.config.crop_frames or np.iinfo(np.int32).max)

    def __getitem__(self, index: EpochIndex | int) -> Example:
        example = self._example(index)
        return replace(example, mean=example.mean.clone(), scale=example.scale.clone())

    def __getitems__(self, indices: Sequence[EpochIndex | int]) -> list[Example]:
        """Several examples, for ``DataLoader``; their latents are views of the mapped file and must not be changed."""
        return [self._example(index) for index in indices]

    def _example(self, index: EpochIndex | int) -> Example:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        row, config = int(self.rows[number]), self.config
        song = self.store.song(row)
        whole = frames = int(self.store.frames[row])
        first, match = 0, True
        if config.crop_frames is not None and frames > config.crop_frames:
            frames = config.crop_frames
            if config.crop is Crop.random:
                first = self._random_integer(epoch, row) % (whole - frames + 1)
            song, match = self._crop_text(song, row, first, frames)
        if config.captions:
            parts = CaptionParts(song.caption, *(self.store.cell(row, name) or "" for name in ("genre", "tag")))
            song = replace(song, caption=apply_transforms(parts, config.captions, self._generator(epoch, row, 1)))
        if config.metadata_dropout:
            no_bpm, no_key, no_time = self._generator(epoch, row, 3).random(3) < config.metadata_dropout
            song = replace(
                song,
                bpm=None if no_bpm else song.bpm,
                key=None if no_key else song.key,
                time_signature=None if no_time else song.time_signature,
            )
        has_tasks = config.tasks.cover + config.tasks.repaint > 0
        task = config.tasks(frames, self._generator(epoch, row, 2)) if has_tasks else SampledTask()
        mean, scale = self.store.latents(row, first, frames)
        if config.frozen:
            mean, scale = self._frozen_sample(row, first, frames), torch.zeros_like(scale)
        return Example(song, mean, scale, row, task, match)

    def _frozen_sample(self, row: int, first: int, frames: int) -> Tensor:
        """A crop of the sample of the whole song's latents, which depends only on the song."""
        mean, scale = self.store.latents(row, 0, first + frames)
        random = np.random.default_rng(int(sha256(self.store.sha256[row].encode()).hexdigest()[:16], 16))
        noise = torch.from_numpy(random.standard_normal((first + frames, mean.shape[1]), dtype=np.float32))
        return Posterior(mean.float(), scale.float()).sample(noise)[first:].half()

    def _crop_text(self, song: Song, row: int, first: int, frames: int) -> tuple[Song, bool]:
        """The text of a crop, and whether its lyrics are those of the crop."""
        rate = self.store.frames_per_second
        start, seconds = first / rate, frames / rate
        if self.config.words is CropText.whole:
            return song, not song.lyrics.strip()
        times = self.store.cell(row, "lyric_times") if song.lyrics else None
        if not times:
            return replace(song, seconds=seconds), not song.lyrics.strip()
        return replace(song, seconds=seconds, lyrics=crop_lyrics(song.lyrics, times, start, start + seconds)), True

    def _random_integer(self, epoch: int, row: int) -> int:
        """An integer below 2^64, by a hash, which takes a fiftieth of the time of a generator."""
        return int.from_bytes(blake2b(f"{self.seed}/{epoch}/{row}".encode(), digest_size=8).digest(), "little")

    def _generator(self, epoch: int, row: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch, row, purpose))

    def split(self, held_out: int, seed: int = 0) -> tuple[LatentDataset, LatentDataset]:
        """All songs but ``held_out`` of them, and those.

        Songs are ranked by a hash of ``seed`` and their audio, so that the choice does not depend on their order.
        """
        if not 0 <= held_out < len(self):
            raise ValueError(f"held_out={held_out}: need at least 0 and fewer than the {len(self)} songs of the store")
        ranks = [sha256(f"{seed}/{self.store.sha256[row]}".encode()).digest() for row in self.rows]
        order = self.rows[sorted(range(len(ranks)), key=ranks.__getitem__)]
        training, validation = (
            LatentDataset(self.store, seed=self.seed, rows=np.sort(rows), config=self.config)
            for rows in (order[held_out:], order[:held_out])
        )
        return training, validation


def collate(examples: Sequence[Example]) -> LatentBatch:
    """The examples as one batch, padded to the longest."""
    frames = torch.tensor([len(example.mean) for example in examples])
    shape = (len(examples), int(frames.max()), examples[0].mean.shape[1])
    return LatentBatch(
        songs=[example.song for example in examples],
        mean=_pad([example.mean for example in examples], shape),
        scale=_pad([example.scale for example in examples], shape),
        frame_mask=torch.arange(shape[1]) < frames[:, None],
        indices=[example.index for example in examples],
        tasks=[example.task for example in examples],
        lyrics_match=[example.lyrics_match for example in examples],
    )


def _pad(parts: Sequence[Tensor], shape: tuple[int, int, int]) -> Float[Tensor, "b t c"]:
    batch = _empty(shape, parts[0].dtype)
    for row, part in zip(batch, parts, strict=True):
        if len(part) < len(row):
            row[len(part) :] = 0
            row = row[: len(part)]
        row.copy_(part)
    return batch


def _empty(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Memory for a batch; in a loader process shared memory, so that the training process need not copy it."""
    size = dtype.itemsize * shape[0] * shape[1] * shape[2]
    if get_worker_info() is not None:
        strides = (shape[1] * shape[2], shape[2], 1)
        return torch.empty(0, dtype=dtype).set_(torch.UntypedStorage._new_shared(size), 0, shape, strides)
    return torch.frombuffer(_reused_memory(size), dtype=dtype, count=size // dtype.itemsize).view(shape)


_buffers: deque[bytearray] = deque(maxlen=8)
UNUSED_REFERENCES = 3
"""Reference count of a buffer that no tensor uses: the deque, the loop variable, and ``getrefcount``'s argument."""


def _reused_memory(size: int) -> bytearray:
    """The buffer of an earlier batch that is no longer used, if any: mapping new pages is slower than filling them."""
    for buffer in _buffers:
        if size <= len(buffer) <= 2 * size and sys.getrefcount(buffer) == UNUSED_REFERENCES:
            return buffer
    buffer = bytearray(size)
    _buffers.append(buffer)
    return buffer
