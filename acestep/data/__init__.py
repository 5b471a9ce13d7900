"""From audio files to batches: sources, the latent store, the data set and its sampler. No network is defined here."""

from acestep.data.dataset import (
    Crop,
    CropText,
    Example,
    ExampleConfig,
    LatentBatch,
    LatentDataset,
    SampledTask,
    TaskMix,
    collate,
)
from acestep.data.sampler import Buckets, EpochBatches, EpochIndex
from acestep.data.store import LatentStore, autoencoder_settings

__all__ = [
    "Buckets",
    "Crop",
    "CropText",
    "EpochBatches",
    "EpochIndex",
    "Example",
    "ExampleConfig",
    "LatentBatch",
    "LatentDataset",
    "LatentStore",
    "SampledTask",
    "TaskMix",
    "autoencoder_settings",
    "collate",
]
