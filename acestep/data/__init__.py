"""From files to batches: sources, the latent store, the data set and its sampler. Knows no network and no optimiser."""

from acestep.data.dataset import Example, LatentBatch, LatentDataset, collate
from acestep.data.sampler import Draw, EpochBatches
from acestep.data.store import LatentStore, autoencoder_settings

__all__ = [
    "Draw",
    "EpochBatches",
    "Example",
    "LatentBatch",
    "LatentDataset",
    "LatentStore",
    "autoencoder_settings",
    "collate",
]
