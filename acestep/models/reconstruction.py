"""Distances between a waveform and its reconstruction, differentiable. Knows spectra; knows no network.

Shapes: B songs, A audio channels, S samples. Sources: Stable Audio Tools ``training/losses`` (auraloss's sum and
difference of multi-resolution STFT losses), arXiv 1910.11480 (Parallel WaveGAN) for the STFT loss itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor

FFT_SIZES = (2048, 1024, 512, 256, 128, 64, 32)
FLOOR = 1e-8
QUIET = 1e-2
"""Root mean square, -40 dB: relative errors of quieter music are taken relative to this, else silence would drown out
all other songs of a batch."""
WINDOW_POWER = 3 / 8
"""Mean square of a Hann window."""

Audio = Float[Tensor, "b a s"]


def stft_distance(made: Audio, wanted: Audio, sizes: Sequence[int] = FFT_SIZES) -> Float[Tensor, ""]:
    """Spectral convergence plus the mean difference of log magnitudes, averaged over songs and ``sizes`` of transform.

    Hops are a quarter of the size. Sizes longer than the waveform are left out. Convergence is relative to each song
    by itself, so that a batch's distance is the mean of its songs'.
    """
    sizes = [size for size in sizes if size <= made.shape[-1]]
    if not sizes:
        raise ValueError(f"audio has {made.shape[-1]} samples: need at least {min(FFT_SIZES)}")
    distances = []
    for size in sizes:
        one, other = _magnitudes(made, size), _magnitudes(wanted, size)
        apart, whole = (torch.linalg.vector_norm(values, dim=(1, 2, 3)) for values in (one - other, other))
        quiet = QUIET * math.sqrt(other[0].numel() * WINDOW_POWER * size)
        distances.append((apart / whole.clamp(min=quiet)).mean() + (one.log() - other.log()).abs().mean())
    return torch.stack(distances).mean()


def stereo_distance(made: Audio, wanted: Audio, sizes: Sequence[int] = FFT_SIZES) -> dict[str, Float[Tensor, ""]]:
    """``stft_distance`` of the sum and difference of two channels, and of the channels themselves; mono has no sum."""
    found = {"stft": stft_distance(made, wanted, sizes)}
    if made.shape[1] == 2:
        found["stft_sum_difference"] = stft_distance(sum_difference(made), sum_difference(wanted), sizes)
    return found


def mel_distance(made: Audio, wanted: Audio, sample_rate: int, size: int = 2048, bands: int = 128) -> Float[Tensor, ""]:
    """Mean difference of log mel spectra."""
    size = min(size, made.shape[-1])
    mel = _mel(sample_rate, size, min(bands, size // 16), made.device)
    one, other = (mel(audio.float()).clamp(min=1e-5).log10() for audio in (made, wanted))
    return (one - other).abs().mean()


def gaussian_kl(mean: Float[Tensor, "b t c"], scale: Float[Tensor, "b t c"]) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence of a diagonal Gaussian from the standard one, per frame, in nats."""
    variance = scale.square()
    return 0.5 * (mean.square() + variance - variance.log() - 1).sum(-1).mean()


def sum_difference(audio: Audio) -> Audio:
    """Half the sum and half the difference of two channels."""
    left, right = audio[:, :1], audio[:, 1:2]
    return torch.cat([left + right, left - right], dim=1) / 2


def _magnitudes(audio: Audio, size: int) -> Float[Tensor, "b a f t"]:
    flat = audio.float().flatten(0, 1)
    window = torch.hann_window(size, device=audio.device)
    spectrum = torch.stft(flat, size, max(1, size // 4), window=window, return_complex=True)
    magnitudes = (spectrum.real.square() + spectrum.imag.square()).clamp(min=FLOOR).sqrt()
    return magnitudes.unflatten(0, audio.shape[:2])


@cache
def _mel(sample_rate: int, size: int, bands: int, device: torch.device) -> torchaudio.transforms.MelSpectrogram:
    return torchaudio.transforms.MelSpectrogram(
        sample_rate, n_fft=size, hop_length=max(1, size // 4), n_mels=max(1, bands), power=1.0
    ).to(device)
