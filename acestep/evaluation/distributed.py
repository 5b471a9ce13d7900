"""Several processes on one evaluation: each makes and hears its share, all end with the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


def _alone() -> None:
    """There is nobody to wait for."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share an output folder.

    Attributes:
        rank: number of this process, from 0.
        world: how many there are.
        wait: returns when every process has called it.
    """

    rank: int = 0
    world: int = 1
    wait: Callable[[], None] = _alone

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of the items: every ``world``-th."""
        return items[self.rank :: self.world]
