"""Embedding models, and the speech recogniser, that turn audio into features for metrics."""

from acestep.evaluation.embedders.base import Embedder, FeatureExtractor, Features, MissingWeightsError
from acestep.evaluation.embedders.clap import LaionClap, TransformersClap
from acestep.evaluation.embedders.mel import MelEmbedder
from acestep.evaluation.embedders.micro_clap import MicroClap
from acestep.evaluation.embedders.whisper import Whisper

__all__ = [
    "Embedder",
    "FeatureExtractor",
    "Features",
    "LaionClap",
    "MelEmbedder",
    "MicroClap",
    "MissingWeightsError",
    "TransformersClap",
    "Whisper",
]
