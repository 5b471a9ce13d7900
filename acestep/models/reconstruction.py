"""Differentiable reconstruction losses between waveforms: multi-resolution STFT, mel, KL divergence.

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
MIN_RMS = 1e-2
"""RMS, -40 dB: the error of quieter songs is relative to this, or silence would dominate a batch."""
WINDOW_POWER = 3 / 8
"""Mean square of a Hann window."""

Audio = Float[Tensor, "b a s"]


def stft_distance(output: Audio, target: Audio, sizes: Sequence[int] = FFT_SIZES) -> Float[Tensor, ""]:
    """Spectral convergence plus the L1 distance of log magnitudes, averaged over songs and FFT ``sizes`` in samples.

    Hops are a quarter of the size. Sizes longer than the waveform are skipped. Convergence is relative to each song,
    so that a batch's distance is the mean of its songs'.

    Raises:
        ValueError: the waveform is shorter than the smallest size.
    """
    sizes = [size for size in sizes if size <= output.shape[-1]]
    if not sizes:
        raise ValueError(f"audio has {output.shape[-1]} samples: need at least {min(FFT_SIZES)}")
    distances = []
    for size in sizes:
        one, other = _magnitudes(output, size), _magnitudes(target, size)
        error, norm = (torch.linalg.vector_norm(values, dim=(1, 2, 3)) for values in (one - other, other))
        min_norm = MIN_RMS * math.sqrt(other[0].numel() * WINDOW_POWER * size)
        distances.append((error / norm.clamp(min=min_norm)).mean() + (one.log() - other.log()).abs().mean())
    return torch.stack(distances).mean()


def stereo_distance(output: Audio, target: Audio, sizes: Sequence[int] = FFT_SIZES) -> dict[str, Float[Tensor, ""]]:
    """``stft_distance`` of the channels and, for stereo, of their sum and difference."""
    distances = {"stft": stft_distance(output, target, sizes)}
    if output.shape[1] == 2:
        distances["stft_sum_difference"] = stft_distance(sum_difference(output), sum_difference(target), sizes)
    return distances


def mel_distance(
    output: Audio, target: Audio, sample_rate: int, size: int = 2048, bands: int = 128
) -> Float[Tensor, ""]:
    """L1 distance of log10 mel spectra."""
    size = min(size, output.shape[-1])
    mel = _mel(sample_rate, size, min(bands, size // 16), output.device)
    one, other = (mel(audio.float()).clamp(min=1e-5).log10() for audio in (output, target))
    return (one - other).abs().mean()


def gaussian_kl(mean: Float[Tensor, "b t c"], scale: Float[Tensor, "b t c"]) -> Float[Tensor, ""]:
    """KL divergence of a diagonal Gaussian from the standard normal, per frame, in nats."""
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
