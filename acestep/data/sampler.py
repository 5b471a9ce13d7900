"""Which songs make which batch: a pure function of seed, epoch and position, so that any rank can resume anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One song of one epoch. The epoch travels with the index, so that loader processes need no epoch of their own."""

    epoch: int
    index: int


class EpochBatches(Sampler[list[Draw]]):
    """Batches of one rank, for ``DataLoader(batch_sampler=...)``; every epoch is a new permutation of all songs.

    Ranks take turns through the permutation: batch ``k`` of rank ``r`` is the ``k * world_size + r``-th slice of
    ``batch_size`` songs, and the songs that fill no batch on every rank are left out of this epoch (others in the
    next). Fewer songs than ``world_size * batch_size`` make one batch an epoch, with songs repeated to fill it.

    With ``frames``, batches hold songs of like length: the permutation is cut into pools of ``pool`` steps, each pool
    sorted by length and cut into steps, which come in a random order. A larger pool pads less and mixes less. Padding
    of songs whose durations are log-normal (sigma 0.4) in batches of 16: 48 % without, 8 % in pools of 16 steps, 2 % in
    pools of 64.
    """

    def __init__(
        self,
        songs: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        frames: Sequence[int] | np.ndarray | None = None,
        pool: int = 64,
    ) -> None:
        """Sample from ``songs`` songs. ``rank`` counts from 0 to below ``world_size``."""
        if songs < 1 or batch_size < 1:
            raise ValueError(f"batch_size={batch_size}, songs={songs}: need at least 1 of each")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}: need 0 <= rank < world_size={world_size}")
        if frames is not None and (len(frames) != songs or pool < 1):
            raise ValueError(f"pool={pool}, frames: {len(frames)}: need a pool of at least 1, and one length a song")
        self.songs, self.batch_size, self.seed, self.rank, self.world_size = songs, batch_size, seed, rank, world_size
        self.frames, self.pool = None if frames is None else np.asarray(frames), pool
        self.epoch = 0
        self._first = 0

    def __len__(self) -> int:
        """Batches of an epoch, on each rank."""
        return max(1, self.songs // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[Draw]]:
        """What is left of the current epoch; the next iteration starts the epoch after it."""
        epoch, first = self.epoch, self._first
        self.seek((epoch + 1) * len(self))
        mine = self._order(epoch).reshape(len(self), self.world_size, self.batch_size)[:, self.rank]
        for batch in mine[first:]:
            yield [Draw(epoch, int(index)) for index in batch]

    def set_epoch(self, epoch: int) -> None:
        """Start of ``epoch`` next, unless the position is already inside it."""
        if epoch != self.epoch:
            self.seek(epoch * len(self))

    def seek(self, batches: int) -> None:
        """Go on after the first ``batches`` batches of this rank, counted over all epochs."""
        self.epoch, self._first = divmod(batches, len(self))

    def _order(self, epoch: int) -> np.ndarray:
        """The songs of an epoch: step after step, and in a step rank after rank."""
        random = np.random.default_rng((self.seed, epoch))
        order = np.resize(random.permutation(self.songs), len(self) * self.world_size * self.batch_size)
        if self.frames is None:
            return order
        step = self.world_size * self.batch_size
        pools = np.array_split(order.reshape(-1, step), -(-len(self) // self.pool))
        # A stable sort of a permuted pool: songs of one length do not keep company from epoch to epoch.
        sorted_pools = [
            pool.reshape(-1)[np.argsort(self.frames[pool.reshape(-1)], kind="stable")].reshape(-1, step)
            for pool in pools
        ]
        return random.permutation(np.concatenate(sorted_pools)).reshape(-1)
