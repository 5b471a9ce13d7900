"""Several processes on one evaluation: each generates and scores its share, and all end with the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process among those that share an output folder.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        barrier: returns when every process has called it.
    """

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], None] = lambda: None

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of the items: every ``world_size``-th."""
        return items[self.rank :: self.world_size]
