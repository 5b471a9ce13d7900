"""Ways to spoil a song a little or a lot: a metric that does not follow them does not measure what it says.

Each takes a recording and a level from 0, which changes nothing, to 1, which leaves little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torchaudio.functional
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio

Corruption = Callable[[Audio, float, torch.Generator], Audio]

QUIETEST_NOISE_DB, LOUDEST_NOISE_DB = -30.0, 15.0
HIGHEST_CUTOFF_HZ, LOWEST_CUTOFF_HZ = 16_000.0, 150.0
LARGEST_GAIN_DB = 45.0
SHORTEST_SHARE = 0.1
LARGEST_STRETCH = 1.5
FFT, HOP = 2_048, 512


def noisy(audio: Audio, level: float, generator: torch.Generator) -> Audio:
    """White noise, from 30 dB below the song to 15 dB above it."""
    if level == 0:
        return audio
    decibels = QUIETEST_NOISE_DB + level * (LOUDEST_NOISE_DB - QUIETEST_NOISE_DB)
    noise = torch.randn(audio.samples.shape, generator=generator)
    rms = audio.samples.square().mean().sqrt()
    return _safe(audio, audio.samples + noise * rms * 10 ** (decibels / 20))


def muffled(audio: Audio, level: float, generator: torch.Generator) -> Audio:
    """Nothing above a cutoff that falls from 16 kHz to 150 Hz in even musical steps."""
    if level == 0:
        return audio
    cutoff = HIGHEST_CUTOFF_HZ * (LOWEST_CUTOFF_HZ / HIGHEST_CUTOFF_HZ) ** level
    spectrum = torch.fft.rfft(audio.samples)
    hz = torch.fft.rfftfreq(audio.samples.shape[1], 1 / audio.sample_rate)
    return _safe(audio, torch.fft.irfft(spectrum / (1 + (hz / cutoff) ** 8), audio.samples.shape[1]))


def clipped(audio: Audio, level: float, generator: torch.Generator) -> Audio:
    """Driven into full scale by up to 45 dB; as loud as before."""
    if level == 0:
        return audio
    driven = (audio.samples * 10 ** (level * LARGEST_GAIN_DB / 20)).clamp(-1, 1)
    return _safe(audio, driven * (audio.samples.square().mean() / driven.square().mean().clamp(min=1e-12)).sqrt())


def truncated(audio: Audio, level: float, generator: torch.Generator) -> Audio:
    """Silent after a part of its length: a tenth remains at the highest level."""
    sounding = round(audio.samples.shape[1] * (1 - level * (1 - SHORTEST_SHARE)))
    samples = audio.samples.clone()
    samples[:, sounding:] = 0.0
    return replace(audio, samples=samples)


def slowed(audio: Audio, level: float, generator: torch.Generator) -> Audio:
    """Played slower by up to a half at its own pitch (a phase vocoder), and cut to its length."""
    if level == 0:
        return audio
    window = torch.hann_window(FFT)
    spectra = torch.stft(audio.samples, FFT, HOP, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * HOP, FFT // 2 + 1)[:, None]
    slow = torchaudio.functional.phase_vocoder(spectra, 1 / (1 + level * (LARGEST_STRETCH - 1)), advance)
    samples = torch.istft(slow, FFT, HOP, window=window)[:, : audio.samples.shape[1]]
    return _safe(audio, samples)


CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": noisy,
    "low-pass": muffled,
    "clipping": clipped,
    "truncation": truncated,
    "slowing": slowed,
}


def _safe(audio: Audio, samples: Float[Tensor, "a s"]) -> Audio:
    """Scaled down where it would leave full scale."""
    return replace(audio, samples=samples / samples.abs().max().clamp(min=1.0))
