"""From files to batches: sources, the latent store, the data set and its sampler. Knows no network and no optimiser."""

from acestep.data.dataset import Crop, Example, LatentBatch, LatentDataset, Variation, Words, collate
from acestep.data.loader import LatentLoader
from acestep.data.sampler import Buckets, Draw, EpochBatches
from acestep.data.settings import autoencoder_settings
from acestep.data.store import LatentStore
from acestep.data.tasks import TaskDraw, TaskMix

__all__ = [
    "Buckets",
    "Crop",
    "Draw",
    "EpochBatches",
    "Example",
    "LatentBatch",
    "LatentDataset",
    "LatentLoader",
    "LatentStore",
    "TaskDraw",
    "TaskMix",
    "Variation",
    "Words",
    "autoencoder_settings",
    "collate",
]
