"""Songs of a latent store as examples and batches: crops with the words that belong to them, padding, masks."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from acestep.data.captions import CaptionChange, CaptionParts, changed
from acestep.data.lyrics import cut
from acestep.data.sampler import Draw
from acestep.data.store import LatentStore
from acestep.data.tasks import TaskDraw, TaskMix
from acestep.types import Posterior, Song


class Crop(Enum):
    """Where the piece of a song that is too long begins: anywhere, or at its beginning, as upstream's trainer cuts."""

    random = "random"
    head = "head"


class Words(Enum):
    """What a piece of a song says: the lines that are sung in it, where times are known, and its own duration.

    ``whole`` gives it the lyrics and the duration of the whole song, as upstream's trainer does.
    """

    piece = "piece"
    whole = "whole"


@dataclass(frozen=True)
class Example:
    """One song, or a crop of it, as stored: float16. ``song.seconds`` is the duration of what is here.

    ``lyrics_match`` is False for a crop whose lyrics are the whole song's, because no times of its lines are known.
    """

    song: Song
    mean: Float[Tensor, "t c"]
    scale: Float[Tensor, "t c"]
    index: int
    task: TaskDraw = field(default_factory=TaskDraw)
    lyrics_match: bool = True


@dataclass(frozen=True)
class LatentBatch:
    """Songs of one batch with their posteriors, zero-padded to the longest; ``frame_mask`` is True on real frames."""

    songs: list[Song]
    mean: Float[Tensor, "b t c"]
    scale: Float[Tensor, "b t c"]
    frame_mask: Bool[Tensor, "b t"]
    indices: list[int]
    tasks: list[TaskDraw] = field(default_factory=list)
    lyrics_match: list[bool] = field(default_factory=list)

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


TOLD = ("bpm", "key", "time_signature")


@dataclass(frozen=True, kw_only=True)
class Variation:
    """What may differ from one epoch to the next, beside the order of songs.

    Args:
        crop_frames: longest piece of a song; ``None`` takes songs whole.
        crop: where a piece begins.
        words: what a piece says of itself.
        frozen: one draw of each song's latents stands for their posterior in every epoch, as in upstream's cache.
        captions: changes of captions, one after another.
        untold: share of the songs that do not tell their tempo, and of those that do not tell key or time signature.
        tasks: what songs are trained on.
    """

    crop_frames: int | None = None
    crop: Crop = Crop.random
    words: Words = Words.piece
    frozen: bool = False
    captions: Sequence[CaptionChange] = ()
    untold: float = 0.0
    tasks: TaskMix = field(default_factory=TaskMix)

    def __post_init__(self) -> None:
        if self.crop_frames is not None and self.crop_frames < 1:
            raise ValueError(f"crop_frames={self.crop_frames}: need at least 1, or none for whole songs")
        if not 0 <= self.untold <= 1:
            raise ValueError(f"data.untold={self.untold:g}: need a share from 0 to 1")


class LatentDataset(Dataset[Example]):
    """Songs of a store, whole, or cropped to at most ``crop_frames``.

    What song ``i`` is in epoch ``e`` is a function of ``(seed, e, i)`` alone. Indexed by a ``Draw``, or by a plain
    number, which means epoch 0. ``rows`` restricts it to some songs of the store. ``crop_frames`` is short for a
    ``variation`` with nothing else.
    """

    def __init__(
        self,
        store: str | Path | LatentStore,
        *,
        crop_frames: int | None = None,
        seed: int = 0,
        rows: Sequence[int] | None = None,
        variation: Variation | None = None,
    ) -> None:
        """Open ``store`` if it is a path."""
        self.store = store if isinstance(store, LatentStore) else LatentStore(store)
        self.rows = np.arange(len(self.store)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.variation = variation or Variation(crop_frames=crop_frames)
        self.seed = seed

    def __len__(self) -> int:
        """How many songs."""
        return len(self.rows)

    @property
    def frames(self) -> np.ndarray:
        """Frames of every song as it comes, cropped if it is too long, (songs,)."""
        return np.minimum(self.store.frames[self.rows], self.variation.crop_frames or np.iinfo(np.int32).max)

    def __getitem__(self, draw: Draw | int) -> Example:
        """The example that ``draw`` names."""
        example = self._example(draw)
        return replace(example, mean=example.mean.clone(), scale=example.scale.clone())

    def __getitems__(self, draws: Sequence[Draw | int]) -> list[Example]:
        """Several at once, as a loader asks: their latents are the file's own memory, to be copied and not changed."""
        return [self._example(draw) for draw in draws]

    def _example(self, draw: Draw | int) -> Example:
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        row, variation = int(self.rows[index]), self.variation
        song = self.store.song(row)
        whole = frames = int(self.store.frames[row])
        first, match = 0, True
        if variation.crop_frames is not None and frames > variation.crop_frames:
            frames = variation.crop_frames
            if variation.crop is Crop.random:
                first = self._draw(epoch, row) % (whole - frames + 1)
            song, match = self._worded(song, row, first, frames)
        if variation.captions:
            parts = CaptionParts(song.caption, *(self.store.cell(row, name) or "" for name in ("genre", "tag")))
            song = replace(song, caption=changed(parts, variation.captions, self._random(epoch, row, 1)))
        if variation.untold:
            untold = self._random(epoch, row, 3).random(len(TOLD)) < variation.untold
            song = replace(song, **{name: None for name, is_untold in zip(TOLD, untold, strict=True) if is_untold})
        task = variation.tasks(frames, self._random(epoch, row, 2)) if variation.tasks.mixes else TaskDraw()
        mean, scale = self.store.tensors(row, first, frames)
        if variation.frozen:
            mean, scale = self._frozen(row, first, frames), torch.zeros_like(scale)
        return Example(song, mean, scale, row, task, match)

    def _frozen(self, row: int, first: int, frames: int) -> Tensor:
        """A piece of a draw of the whole song's latents that is the same in every run."""
        mean, scale = self.store.tensors(row, 0, first + frames)
        noise = np.random.default_rng(int(sha256(self.store.sha256[row].encode()).hexdigest()[:16], 16))
        drawn = noise.standard_normal((first + frames, mean.shape[1]), dtype=np.float32)
        return Posterior(mean.float(), scale.float()).sample(torch.from_numpy(drawn))[first:].half()

    def _worded(self, song: Song, row: int, first: int, frames: int) -> tuple[Song, bool]:
        """The words of a piece, and whether its lyrics are those of the piece."""
        rate = self.store.frames_per_second
        seconds = frames / rate
        if self.variation.words is Words.whole:
            return song, not song.lyrics.strip()
        times = self.store.cell(row, "lyric_times") if song.lyrics else None
        if not times:
            return replace(song, seconds=seconds), not song.lyrics.strip()
        return replace(
            song, seconds=seconds, lyrics=cut(song.lyrics, times, first / rate, first / rate + seconds)
        ), True

    def _draw(self, epoch: int, row: int) -> int:
        """A number below 2^64: one hash costs a fiftieth of a generator."""
        return int.from_bytes(blake2b(f"{self.seed}/{epoch}/{row}".encode(), digest_size=8).digest(), "little")

    def _random(self, epoch: int, row: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch, row, purpose))

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
        return LatentDataset(self.store, seed=self.seed, rows=rows, variation=self.variation)


def collate(examples: Sequence[Example]) -> LatentBatch:
    """The examples as one batch, padded to the longest."""
    frames = torch.tensor([len(example.mean) for example in examples])
    shape = (len(examples), int(frames.max()), examples[0].mean.shape[1])
    return LatentBatch(
        songs=[example.song for example in examples],
        mean=_padded([example.mean for example in examples], shape),
        scale=_padded([example.scale for example in examples], shape),
        frame_mask=torch.arange(shape[1]) < frames[:, None],
        indices=[example.index for example in examples],
        tasks=[example.task for example in examples],
        lyrics_match=[example.lyrics_match for example in examples],
    )


def _padded(parts: Sequence[Tensor], shape: tuple[int, int, int]) -> Float[Tensor, "b t c"]:
    batch = _fresh(shape, parts[0].dtype)
    for row, part in zip(batch, parts, strict=True):
        if len(part) < len(row):
            row[len(part) :] = 0
            row = row[: len(part)]
        row.copy_(part)
    return batch


def _fresh(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Memory for a batch; in a loader process, such as the training process sees without another copy."""
    size = dtype.itemsize * shape[0] * shape[1] * shape[2]
    if get_worker_info() is not None:
        return torch.empty(0, dtype=dtype).set_(torch.UntypedStorage._new_shared(size), 0, shape)
    return torch.frombuffer(_memory(size), dtype=dtype, count=size // dtype.itemsize).view(shape)


_used: deque[bytearray] = deque(maxlen=8)
UNUSED = 3
"""References to a piece of memory that no tensor holds: the deque's, the loop's, and the question's own."""


def _memory(size: int) -> bytearray:
    """Memory that an earlier batch has left, where there is some: to map new pages takes longer than to fill them."""
    for memory in _used:
        if size <= len(memory) <= 2 * size and sys.getrefcount(memory) == UNUSED:
            return memory
    memory = bytearray(size)
    _used.append(memory)
    return memory
