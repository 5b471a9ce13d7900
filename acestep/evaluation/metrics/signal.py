"""What needs no model to be heard: length, silence, loudness, clipping, stereo. Catches failures that others miss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.cache import Heard
from acestep.evaluation.files import digest
from acestep.evaluation.metrics.base import Always, Unprompted
from acestep.evaluation.prompts import Prompt

SILENT_DBFS = -60.0
QUIETEST = 10 ** (-120 / 20)
BLOCK_SECONDS = 0.05
TONE_HZ = 14_000.0
CLIPPED = 0.999
SHORTEST_FOR_LOUDNESS = 0.4


def measure(audio: Audio) -> dict[str, float]:
    """All measures of a recording by name.

    ``lufs`` is the integrated loudness of ITU-R BS.1770-4; ``crest`` the peak above the mean level in dB; ``clipped``
    the share of samples at full scale; ``correlation`` that of left and right, and ``mono_loss`` what their sum loses,
    in dB; ``treble`` the share of energy above 14 kHz, which most embeddings do not hear; ``silence`` the share of
    blocks below -60 dBFS, ``lead`` and ``tail`` the silent seconds at both ends.
    """
    samples = audio.samples.to(torch.float32)
    if not torch.isfinite(samples).all():
        raise ValueError("the recording holds NaN or infinity")
    rms, peak = float(samples.square().mean().sqrt()), float(samples.abs().max())
    left, right = samples[0], samples[-1]
    silent = _silent_blocks(samples, audio.sample_rate)
    block = 1 / _blocks_per_second(audio)
    sounding = (~silent).nonzero().flatten()
    lead = float(sounding[0]) * block if len(sounding) else audio.seconds
    tail = float(len(silent) - 1 - sounding[-1]) * block if len(sounding) else audio.seconds
    return {
        "seconds": audio.seconds,
        "lufs": _lufs(samples, audio.sample_rate),
        "peak": _decibels(peak),
        "crest": _decibels(peak) - _decibels(rms),
        "clipped": float((samples.abs() >= CLIPPED).double().mean()),
        "offset": float(samples.mean(1).abs().max()),
        "correlation": _cosine(left - left.mean(), right - right.mean()),
        "mono_loss": max(_decibels(rms) - _decibels(float(samples.mean(0).square().mean().sqrt())), 0.0),
        "treble": _treble(samples, audio.sample_rate),
        "silence": float(silent.double().mean()),
        "lead": lead,
        "tail": tail,
    }


@dataclass(frozen=True, kw_only=True)
class SignalHealth:
    """The measures of a waveform, prompt or not; ``lufs`` first. Songs of no healthy kind stand out in them."""

    def load(self) -> HealthScorer:
        """The scorer."""
        return HealthScorer()


@dataclass(frozen=True, kw_only=True)
class DurationAdherence:
    """Whether a song is as long as asked for, and sounds to its end.

    Attributes:
        early: seconds of silence at the end from which a song counts as ended too early.
    """

    early: float = 2.0

    def load(self) -> DurationScorer:
        """The scorer."""
        return DurationScorer(self.early)


class SignalEar:
    """The measures of a song, in the order of ``MEASURES``."""

    name = "signal"
    pure = True
    fingerprint = digest(f"signal-{SILENT_DBFS:g}-{BLOCK_SECONDS:g}-{TONE_HZ:g}")

    def hear(self, audio: Audio) -> Heard:
        """Each measure (1) by its name."""
        return {name: torch.tensor([value], dtype=torch.float64) for name, value in measure(audio).items()}


class HealthScorer(Unprompted):
    """What :class:`SignalHealth` configures."""

    ear = SignalEar()
    goal = "neither"

    def score(self, heard: Heard, prompt: Prompt) -> dict[str, float]:
        """Every measure but the length."""
        first = {"lufs": float(heard["lufs"])}
        return first | {name: float(value) for name, value in sorted(heard.items()) if name != "seconds"}


@dataclass(frozen=True)
class DurationScorer(Always):
    """What :class:`DurationAdherence` configures."""

    early: float
    ear = SignalEar()

    def applies(self, prompt: Prompt) -> bool:
        """Whether a length is asked for."""
        return bool(prompt.song.seconds)

    def score(self, heard: Heard, prompt: Prompt) -> dict[str, float]:
        """``sounding``: the share of the asked length that is no silent end; ``error`` of the length in seconds."""
        wanted, tail = float(prompt.song.seconds or 0), float(heard["tail"])
        made = float(heard["seconds"])
        return {
            "sounding": min((made - tail) / wanted, 1.0),
            "error": abs(made - wanted),
            "early_end": float(tail >= self.early),
            "lead": float(heard["lead"]),
        }


def _blocks_per_second(audio: Audio) -> float:
    return audio.sample_rate / max(round(BLOCK_SECONDS * audio.sample_rate), 1)


def _silent_blocks(samples: Float[Tensor, "a s"], rate: int) -> Tensor:
    length = max(round(BLOCK_SECONDS * rate), 1)
    padded = torch.nn.functional.pad(samples, (0, -samples.shape[1] % length))
    level = padded.unflatten(1, (-1, length)).square().mean((0, 2)).sqrt()
    return level < 10 ** (SILENT_DBFS / 20)


def _lufs(samples: Float[Tensor, "a s"], rate: int) -> float:
    if samples.shape[1] < SHORTEST_FOR_LOUDNESS * rate or float(samples.abs().max()) < QUIETEST:
        return -70.0
    found = float(torchaudio.functional.loudness(samples, rate))
    # Below the gate of BS.1770 there is nothing left to average.
    return max(found, -70.0) if math.isfinite(found) else -70.0


def _treble(samples: Float[Tensor, "a s"], rate: int) -> float:
    power = torch.fft.rfft(samples.mean(0)).abs().square()
    hz = torch.fft.rfftfreq(samples.shape[1], 1 / rate)
    return float(power[hz > TONE_HZ].sum() / power.sum().clamp(min=1e-20))


def _cosine(a: Float[Tensor, " s"], b: Float[Tensor, " s"]) -> float:
    both = float(a.norm() * b.norm())
    return float(a @ b) / both if both > 0 else 1.0


def _decibels(level: float) -> float:
    return 20 * math.log10(max(level, QUIETEST))
