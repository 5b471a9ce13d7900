"""Tempo of any recording, by signal processing alone, compared with the requested tempo."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import Features, mono
from acestep.evaluation.hashing import digest
from acestep.evaluation.metrics.base import Scores, SongMetric
from acestep.evaluation.prompts import EvaluationPrompt

SAMPLE_RATE = 22_050
HOP = 220
RATE_HZ = SAMPLE_RATE / HOP
SHORTEST_SECONDS = 2.0
LOWEST_BPM, HIGHEST_BPM = 30.0, 300.0
PRIOR_BPM, PRIOR_OCTAVES = 120.0, 0.7
TOLERANCE = 0.04
METRICAL_LEVELS = (1 / 3, 1 / 2, 1.0, 2.0, 3.0)


def tempo(audio: Audio) -> float:
    """Beats per minute, 30 to 300; 0 without periodicity, as in silence, and below 2 s.

    Spectral flux, its autocorrelation, the sum over a beat's first four multiples, weighted by a log-normal prior of
    tempi (Ellis 2007), which alone decides between a tempo and its double.
    """
    samples = mono(audio, SAMPLE_RATE)
    if len(samples) < SHORTEST_SECONDS * SAMPLE_RATE:
        return 0.0
    flux = onset_strength(samples)
    if float(flux.std()) < 1e-6:
        return 0.0
    shortest, longest = 60 * RATE_HZ / HIGHEST_BPM, 60 * RATE_HZ / LOWEST_BPM
    spectrum = torch.fft.rfft(flux - flux.mean(), 2 * len(flux)).abs().square()
    correlation = torch.fft.irfft(spectrum)[: len(flux)]
    correlation = correlation / correlation[0] * (len(flux) / (len(flux) - torch.arange(len(flux)))).clamp(max=4)
    lags = torch.arange(math.ceil(shortest), min(math.floor(longest), len(flux) // 2) + 1)
    # A multiple of a beat may fall half a hop off the grid: take the larger neighbour.
    near = torch.nn.functional.max_pool1d(correlation[None, None], 3, 1, 1)[0, 0]
    multiples = [_at(near if k > 1 else correlation, k * lags) for k in (1, 2, 3, 4)]
    strength = sum(w * m for w, m in zip((1.0, 0.7, 0.4, 0.5), multiples, strict=True))
    octaves = torch.log2(60 * RATE_HZ / lags / PRIOR_BPM) / PRIOR_OCTAVES
    weighted = strength * torch.exp(-0.5 * octaves.square())
    best = int(weighted.argmax())
    if float(weighted[best]) <= 0:
        return 0.0
    return 60 * RATE_HZ / _refined(correlation, int(lags[best]))


def onset_strength(samples: Float[Tensor, " s"]) -> Float[Tensor, " t"]:
    """Rise of the log mel spectrum, mean over bands, less its moving average; 100 frames a second."""
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, n_fft=1024, hop_length=HOP, n_mels=40, f_min=30.0)
    level = torch.log1p(1000 * mel(samples / samples.square().mean().sqrt().clamp(min=1e-8)))
    rise = (level[:, 2:] - level[:, :-2]).clamp(min=0).mean(0)
    width = 2 * round(RATE_HZ / 2) + 1
    local = torch.nn.functional.avg_pool1d(rise[None, None], width, 1, width // 2, count_include_pad=False)[0, 0]
    return (rise - local).clamp(min=0)


def tempo_agreement(estimate: float, target: float) -> dict[str, float]:
    """``acc1``: within 4 % of the target; ``acc2``: or of 1/3, 1/2, 2 or 3 times it; ``error``: relative."""
    near = [abs(estimate - level * target) <= TOLERANCE * level * target for level in METRICAL_LEVELS]
    return {"acc1": float(near[2]), "acc2": float(any(near)), "error": abs(estimate - target) / target}


def _at(values: Float[Tensor, " t"], index: Tensor) -> Tensor:
    """``values`` at ``index``; 0 past the end."""
    return torch.where(index < len(values), values[index.clamp(max=len(values) - 1)], 0.0)


def _refined(correlation: Float[Tensor, " t"], lag: int) -> float:
    """The lag to a fraction of a hop: by parabolic interpolation at its furthest multiple with a clear peak."""
    period = _peak(correlation, lag)
    for multiple in (2, 4, 8):
        centre = round(multiple * period)
        if centre + 2 >= len(correlation) // 2:
            break
        window = correlation[centre - 2 : centre + 3]
        if float(window.max()) < 0.5 * float(correlation[lag]) or int(window.argmax()) in (0, 4):
            break
        period = _peak(correlation, centre - 2 + int(window.argmax())) / multiple
    return period


def _peak(correlation: Float[Tensor, " t"], lag: int) -> float:
    low, middle, high = correlation[lag - 1 : lag + 2].tolist()
    curve = low - 2 * middle + high
    return lag + (max(min(0.5 * (low - high) / curve, 0.5), -0.5) if curve < 0 else 0.0)


@dataclass(frozen=True, kw_only=True)
class TempoAdherence(SongMetric):
    """Share of songs at the requested tempo (Acc1), or at one that a listener might tap instead (Acc2)."""

    name = "tempo"
    fingerprint = digest(f"tempo-{SAMPLE_RATE}-{HOP}-{PRIOR_BPM:g}-{PRIOR_OCTAVES:g}")
    thread_safe = True

    def extract(self, audio: Audio) -> Features:
        """``bpm`` (1)."""
        return {"bpm": torch.tensor([tempo(audio)])}

    def applies(self, prompt: EvaluationPrompt) -> bool:
        return bool(prompt.song.bpm)

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        """See :func:`tempo_agreement`."""
        assert prompt.song.bpm
        return tempo_agreement(float(features["bpm"]), float(prompt.song.bpm))
