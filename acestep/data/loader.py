"""Batches of songs from a store, resumable at any of them, whatever the number of loader processes."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DataLoader

from acestep.data.dataset import LatentBatch, LatentDataset, collate
from acestep.data.sampler import EpochBatches


class LatentLoader(DataLoader[LatentBatch]):
    """A loader that counts the batches it has handed out: ``state_dict`` says how many, ``load_state_dict`` goes on.

    Batches that loader processes had ready, but nobody took, are not counted, and come again.
    """

    def __init__(
        self, songs: LatentDataset, batches: EpochBatches, *, workers: int = 0, pin_memory: bool = False
    ) -> None:
        super().__init__(
            songs,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            collate_fn=collate,
        )
        self.batches = batches
        self.taken = 0

    def __iter__(self) -> Iterator[LatentBatch]:  # type: ignore[override]
        """What is left of the epoch; iterated again, the next one."""
        self.batches.seek(self.taken)
        for batch in super().__iter__():
            self.taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position: batches that were handed out, over all epochs."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position of a loader with the same songs, seed, batch size and number of ranks."""
        self.taken = state["taken"]
