"""Which songs make which batch: a pure function of seed, epoch and position, so that any rank can resume anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from acestep.data.store import IntArray


class EpochIndex(NamedTuple):
    """One song in one epoch. Loader processes get the epoch with the index, so they need no state."""

    epoch: int
    song: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Buckets:
    """Batches of songs of similar length, to reduce padding.

    The songs of an epoch are cut into pools of ``pool`` steps, each pool is sorted by length and cut into batches, and
    steps are put in random order. A larger pool pads less and mixes less. Padding of songs whose durations are
    log-normal (sigma 0.4) in batches of 16: 47 % without buckets, 8 % in pools of 16 steps, 3 % in pools of 64.

    With ``budget``, batches are packed: as many songs as fit, so that every step costs about the same memory and time.
    The same songs, 200 s in the median, in batches of at most 64 songs and 24,000 frames: less than 1 %.

    Attributes:
        frames: length of every song.
        pool: steps in a pool.
        budget: largest number of frames in a batch, padding included; a longer song is a batch by itself. ``None``
            fills every batch with ``batch_size`` songs.
    """

    frames: IntArray
    pool: int = 64
    budget: int | None = None

    def __post_init__(self) -> None:
        if self.pool < 1:
            raise ValueError(f"pool={self.pool}: need at least 1 step")
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget={self.budget}: need at least 1 frame")

    def batches(self, songs: IntArray, batch_size: int) -> list[IntArray]:
        """Cut a pool into batches."""
        # The sort is stable and the pool is permuted, so songs of equal length are grouped differently in each epoch.
        songs = songs[np.argsort(self.frames[songs], kind="stable")]
        if self.budget is None:
            return list(songs.reshape(-1, batch_size))
        lengths, batches, first = self.frames[songs], [], 0
        while first < len(songs):
            costs = lengths[first : first + batch_size] * np.arange(1, min(batch_size, len(songs) - first) + 1)
            count = max(1, int(np.searchsorted(costs, self.budget, side="right")))
            batches.append(songs[first : first + count])
            first += count
        return batches


class EpochBatches(Sampler[list[EpochIndex]]):
    """Batches of one rank, for ``DataLoader(batch_sampler=...)``; every epoch is a new permutation of all songs.

    Batch ``k`` of rank ``r`` is the ``k * world_size + r``-th slice of ``batch_size`` songs of the permutation. Songs
    at its end that do not fill a batch on every rank are left out of this epoch. Fewer songs than ``world_size *
    batch_size`` make one batch per epoch, with songs repeated to fill it. With a ``budget`` in ``buckets``, epochs
    differ in their number of batches.

    Args:
        songs: their number.
        batch_size: songs in a batch, at most if ``buckets`` have a budget.
        seed: of the permutations.
        rank: from 0 to below ``world_size``.
        world_size: number of ranks.
        buckets: batch songs of similar length together.
    """

    def __init__(
        self,
        songs: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        buckets: Buckets | None = None,
    ) -> None:
        if songs < 1 or batch_size < 1:
            raise ValueError(f"batch_size={batch_size}, songs={songs}: need at least 1 of each")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}: need 0 <= rank < world_size={world_size}")
        if buckets is not None and len(buckets.frames) != songs:
            raise ValueError(f"frames: {len(buckets.frames)} lengths for {songs} songs; need one each")
        self.songs, self.batch_size, self.seed, self.rank, self.world_size = songs, batch_size, seed, rank, world_size
        self.buckets = buckets
        self.epoch = 0
        self._first = 0
        self._epoch_steps: tuple[int, list[Sequence[IntArray]]] = -1, []

    def __len__(self) -> int:
        """Batches of the current epoch, on each rank."""
        return self._count(self.epoch)

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        """The rest of the current epoch; the next iteration starts the next epoch."""
        epoch, first = self.epoch, self._first
        self.epoch, self._first = epoch + 1, 0
        for step in self._steps(epoch)[first:]:
            yield [EpochIndex(epoch, int(song)) for song in step[self.rank]]

    def seek(self, batches: int) -> None:
        """Continue after the first ``batches`` batches of this rank, counted over all epochs."""
        if not self._packed:
            self.epoch, self._first = divmod(batches, self._count(0))
            return
        self.epoch, self._first = 0, batches
        while self._first >= self._count(self.epoch):
            self._first -= self._count(self.epoch)
            self.epoch += 1

    def padding(self, frames: IntArray) -> float:
        """Share of padding in the first epoch's batches on all ranks, for songs of these lengths."""
        lengths = [frames[batch] for step in self._steps(0) for batch in step]
        return 1 - sum(int(batch.sum()) for batch in lengths) / sum(len(batch) * int(batch.max()) for batch in lengths)

    @property
    def _packed(self) -> bool:
        return self.buckets is not None and self.buckets.budget is not None

    def _count(self, epoch: int) -> int:
        return len(self._steps(epoch)) if self._packed else max(1, self.songs // (self.batch_size * self.world_size))

    def _steps(self, epoch: int) -> list[Sequence[IntArray]]:
        """The steps of an epoch, each with a batch per rank."""
        if self._epoch_steps[0] != epoch:
            self._epoch_steps = epoch, self._make_steps(epoch)
        return self._epoch_steps[1]

    def _make_steps(self, epoch: int) -> list[Sequence[IntArray]]:
        random, step = np.random.default_rng((self.seed, epoch)), self.world_size * self.batch_size
        order = random.permutation(self.songs)
        if not self._packed:
            order = np.resize(order, self._count(epoch) * step)
        if self.buckets is None:
            return list(order.reshape(-1, self.world_size, self.batch_size))
        # Pools of a whole number of steps, as equal as possible.
        steps = -(-len(order) // step)
        pool_steps = np.array_split(np.arange(steps), -(-steps // self.buckets.pool))
        pools = np.array_split(order, [int(part[0]) * step for part in pool_steps[1:]])
        batches = [batch for pool in pools for batch in self.buckets.batches(pool, self.batch_size)]
        if len(batches) < self.world_size:
            batches = [batches[rank % len(batches)] for rank in range(self.world_size)]
        whole = [
            batches[first : first + self.world_size]
            for first in range(0, len(batches) - self.world_size + 1, self.world_size)
        ]
        return [whole[number] for number in random.permutation(len(whole))]
