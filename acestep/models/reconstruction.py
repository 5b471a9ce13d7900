"""Distances between a waveform and its reconstruction, differentiable. Knows spectra; knows no network.

Shapes: B songs, A audio channels, S samples. Sources: Stable Audio Tools ``training/losses`` (auraloss's sum and
difference of multi-resolution STFT losses), arXiv 1910.11480 (Parallel WaveGAN) for the STFT loss itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor

FFT_SIZES = (2048, 1024, 512, 256, 128, 64, 32)
FLOOR = 1e-8

Audio = Float[Tensor, "b a s"]


def stft_distance(made: Audio, wanted: Audio, sizes: Sequence[int] = FFT_SIZES) -> Float[Tensor, ""]:
    """Spectral convergence plus the mean difference of log magnitudes, averaged over ``sizes`` of the transform.

    Hops are a quarter of the size. Sizes longer than the waveform are left out.
    """
    sizes = [size for size in sizes if size <= made.shape[-1]]
    if not sizes:
        raise ValueError(f"audio has {made.shape[-1]} samples: need at least {min(FFT_SIZES)}")
    distances = []
    for size in sizes:
        one, other = _magnitudes(made, size), _magnitudes(wanted, size)
        convergence = torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other).clamp(min=FLOOR)
        distances.append(convergence + (one.log() - other.log()).abs().mean())
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


def _magnitudes(audio: Audio, size: int) -> Float[Tensor, "n f t"]:
    flat = audio.float().flatten(0, 1)
    window = torch.hann_window(size, device=audio.device)
    spectrum = torch.stft(flat, size, max(1, size // 4), window=window, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=FLOOR).sqrt()


@cache
def _mel(sample_rate: int, size: int, bands: int, device: torch.device) -> torchaudio.transforms.MelSpectrogram:
    return torchaudio.transforms.MelSpectrogram(
        sample_rate, n_fft=size, hop_length=max(1, size // 4), n_mels=max(1, bands), power=1.0
    ).to(device)
