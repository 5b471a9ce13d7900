"""Metrics of songs and of sets of songs: one class a metric, one file a family."""

from acestep.evaluation.metrics.adherence import ClapAdherence, OracleAdherence
from acestep.evaluation.metrics.aesthetics import AudioboxAesthetics, SongEval
from acestep.evaluation.metrics.base import EmbedderMetric, Metric, PairMetric, SetMetric, SongMetric, TakesMetric
from acestep.evaluation.metrics.coverage import Coverage, Diversity, Memorisation
from acestep.evaluation.metrics.fad import FrechetDistance, SongFrechetDistance
from acestep.evaluation.metrics.kad import KernelDistance
from acestep.evaluation.metrics.key import KeyAdherence
from acestep.evaluation.metrics.kld import TagDivergence
from acestep.evaluation.metrics.lyric_alignment import LyricAlignment
from acestep.evaluation.metrics.lyrics import LanguageAdherence, LyricsAccuracy
from acestep.evaluation.metrics.signal import DurationAdherence, SignalHealth
from acestep.evaluation.metrics.tempo import TempoAdherence

__all__ = [
    "AudioboxAesthetics",
    "ClapAdherence",
    "Coverage",
    "Diversity",
    "DurationAdherence",
    "EmbedderMetric",
    "FrechetDistance",
    "KernelDistance",
    "KeyAdherence",
    "LanguageAdherence",
    "LyricAlignment",
    "LyricsAccuracy",
    "Memorisation",
    "Metric",
    "OracleAdherence",
    "PairMetric",
    "SetMetric",
    "SignalHealth",
    "SongEval",
    "SongFrechetDistance",
    "SongMetric",
    "TagDivergence",
    "TakesMetric",
    "TempoAdherence",
]
