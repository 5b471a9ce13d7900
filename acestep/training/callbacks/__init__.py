"""Lightning callbacks, by the names that configs use."""

from acestep.training.callbacks.ema import EMA
from acestep.training.callbacks.logging import History, Progress, TrainingMonitor
from acestep.training.callbacks.samples import SampleSongs, ScoreSongs
from acestep.training.checkpoint import Checkpoints

__all__ = ["EMA", "Checkpoints", "History", "Progress", "SampleSongs", "ScoreSongs", "TrainingMonitor"]
