"""Measures of the waveform: length, silence, loudness, clipping, stereo. They show failures that embedders miss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.audio.loudness import MIN_LEVEL, decibels, loudness_float32
from acestep.evaluation.embedders.base import Features
from acestep.evaluation.hashing import digest
from acestep.evaluation.metrics.base import Scores, SongMetric
from acestep.evaluation.prompts import EvaluationPrompt

SILENT_DBFS = -60.0
BLOCK_SECONDS = 0.05
TONE_HZ = 14_000.0
CLIPPED = 0.999


def waveform_measures(audio: Audio) -> dict[str, float]:
    """All measures of a recording by name.

    ``lufs`` is the integrated loudness of ITU-R BS.1770-4; ``crest`` the peak above the mean level in dB; ``clipped``
    the share of samples at full scale; ``correlation`` that of left and right, and ``mono_loss`` the level lost in
    their sum, in dB; ``treble`` the share of energy above 14 kHz, beyond the range of most embeddings; ``silence`` the
    share of blocks below -60 dBFS, ``lead`` and ``tail`` the silent seconds at both ends.
    """
    samples = audio.samples.to(torch.float32)
    if not torch.isfinite(samples).all():
        raise ValueError("the recording holds NaN or infinity; generate the song again")
    rms, peak = float(samples.square().mean().sqrt()), float(samples.abs().max())
    left, right = samples[0], samples[-1]
    silent = _silent_blocks(samples, audio.sample_rate)
    block = 1 / _blocks_per_second(audio)
    sounding = (~silent).nonzero().flatten()
    lead = float(sounding[0]) * block if len(sounding) else audio.seconds
    tail = float(len(silent) - 1 - sounding[-1]) * block if len(sounding) else audio.seconds
    return {
        "seconds": audio.seconds,
        "lufs": loudness_float32(samples, audio.sample_rate),
        "peak": _dbfs(peak),
        "crest": _dbfs(peak) - _dbfs(rms),
        "clipped": float((samples.abs() >= CLIPPED).double().mean()),
        "offset": float(samples.mean(1).abs().max()),
        "correlation": _signal_correlation(left - left.mean(), right - right.mean()),
        "mono_loss": max(_dbfs(rms) - _dbfs(float(samples.mean(0).square().mean().sqrt())), 0.0),
        "treble": _treble(samples, audio.sample_rate),
        "silence": float(silent.double().mean()),
        "lead": lead,
        "tail": tail,
    }


def _blocks_per_second(audio: Audio) -> float:
    return audio.sample_rate / max(round(BLOCK_SECONDS * audio.sample_rate), 1)


def _silent_blocks(samples: Float[Tensor, "a s"], rate: int) -> Tensor:
    length = max(round(BLOCK_SECONDS * rate), 1)
    padded = torch.nn.functional.pad(samples, (0, -samples.shape[1] % length))
    level = padded.unflatten(1, (-1, length)).square().mean((0, 2)).sqrt()
    return level < 10 ** (SILENT_DBFS / 20)


def _treble(samples: Float[Tensor, "a s"], rate: int) -> float:
    power = torch.fft.rfft(samples.mean(0)).abs().square()
    hz = torch.fft.rfftfreq(samples.shape[1], 1 / rate)
    return float(power[hz > TONE_HZ].sum() / power.sum().clamp(min=1e-20))


def _signal_correlation(a: Float[Tensor, " s"], b: Float[Tensor, " s"]) -> float:
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 0 else 1.0


def _dbfs(level: float) -> float:
    return decibels(max(level, MIN_LEVEL))


@dataclass(frozen=True, kw_only=True)
class WaveformMetric(SongMetric):
    """A metric on :func:`waveform_measures`."""

    name = "signal"
    fingerprint = digest(f"signal-{SILENT_DBFS:g}-{BLOCK_SECONDS:g}-{TONE_HZ:g}")
    thread_safe = True

    def extract(self, audio: Audio) -> Features:
        """Each measure (1) by its name."""
        return {name: torch.tensor([value], dtype=torch.float64) for name, value in waveform_measures(audio).items()}


@dataclass(frozen=True, kw_only=True)
class SignalHealth(WaveformMetric):
    """The measures of a waveform, with or without a prompt: broken songs are outliers in them."""

    higher_is_better = None
    uses_prompt = False
    headline = "lufs"

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        """Every measure but the length."""
        return super().score({name: value for name, value in features.items() if name != "seconds"}, prompt)


@dataclass(frozen=True, kw_only=True)
class DurationAdherence(WaveformMetric):
    """Whether a song has the requested length, and sounds to its end.

    Attributes:
        early: seconds of silence at the end from which a song counts as ended too early.
    """

    early: float = 2.0

    def applies(self, prompt: EvaluationPrompt) -> bool:
        return bool(prompt.song.seconds)

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        """``sounding``: share of the requested length before a silent end; ``error`` of the length in seconds."""
        requested, tail = float(prompt.song.seconds or 0), float(features["tail"])
        seconds = float(features["seconds"])
        return {
            "sounding": min((seconds - tail) / requested, 1.0),
            "error": abs(seconds - requested),
            "early_end": float(tail >= self.early),
            "lead": float(features["lead"]),
        }
