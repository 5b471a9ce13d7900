"""Loudness in LUFS (ITU-R BS.1770-4), level normalisation, and the filters they need.

Three estimators with different costs; each is kept because its numbers are written into files:
``loudness`` (pyloudnorm, float64) normalises finished songs, ``loudness_float32`` (torchaudio) is the evaluation's
``lufs``, and ``k_weighting`` with ``gated_loudness`` works block by block on spectra, for files of any length.
"""

from __future__ import annotations

import logging
import math
from enum import Enum

import numpy as np
import torch
import torchaudio
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

PEAK = 10 ** (-1 / 20)
"""-1 dBFS."""
SILENT = 1e-6
TARGET_LUFS = -14.0
"""Playback loudness of the large streaming services."""
ABSOLUTE_GATE_LUFS = -70.0
LOUDNESS_BLOCK_SECONDS = 0.4
MIN_LEVEL = 10 ** (-120 / 20)

logger = logging.getLogger(__name__)


class Normalize(Enum):
    """Level normalisation of a song.

    ``peak`` scales to a peak of -1 dBFS, as upstream does for generated songs. ``lufs`` scales to an integrated
    loudness of -14 LUFS, or as near as a peak of -1 dBFS allows. ``none`` does not scale; after decoding, a song whose
    peak is above 1 is still divided by it, so that nothing clips.
    """

    peak = "peak"
    lufs = "lufs"
    none = "none"

    def gain(self, peak: float, lufs: float | None) -> float:
        """Factor for a song of this ``peak`` (above 0) and loudness; an unknown loudness gets the gain of ``peak``."""
        if self is Normalize.none:
            return 1.0
        to_peak = PEAK / peak
        return to_peak if self is Normalize.peak or lufs is None else min(to_peak, 10 ** ((TARGET_LUFS - lufs) / 20))


def normalize_level(
    samples: Float[Tensor, "a s"], normalize: Normalize, sample_rate: int, name: str = "a song"
) -> Float[Tensor, "a s"]:
    """Normalise a decoded song (upstream ``generate_music_decode.py``, ``audio_utils.py``).

    Args:
        samples: changed in place, since ten minutes of them take a quarter of a gigabyte.
        normalize: the target level.
        sample_rate: in Hz.
        name: of the song, for the warnings that are logged where its level is not the target.
    """
    low, high = samples.aminmax()
    peak = float(max(-low, high))
    if normalize is Normalize.none:
        if peak <= 1:
            return samples
        logger.warning("%s: its peak of %.2f would clip; it was turned down by %.1f dB", name, peak, decibels(peak))
        return samples.div_(peak)
    if peak < SILENT:
        logger.warning("%s: is silent", name)
        return samples
    lufs = None
    if normalize is Normalize.lufs:
        measured = loudness(samples, sample_rate)
        lufs = measured if measured > -math.inf else None
        _warn_if_limited(peak, lufs, name)
    return samples.mul_(normalize.gain(peak, lufs))


def _warn_if_limited(peak: float, lufs: float | None, name: str) -> None:
    if lufs is None:
        logger.warning("%s: is too short or quiet for its loudness to be measured; its peak was set instead", name)
        return
    over = decibels(peak * 10 ** ((TARGET_LUFS - lufs) / 20) / PEAK)
    if over > 0:
        logger.warning(
            "%s: at %.0f LUFS it would clip; its peak allows %.1f LUFS", name, TARGET_LUFS, TARGET_LUFS - over
        )


def loudness(samples: Float[Tensor, "a s"], sample_rate: int) -> float:
    """Integrated loudness in LUFS; minus infinity where a song is silent or shorter than a block of 0.4 s."""
    from pyloudnorm import Meter  # here, since it loads SciPy's filters, and only normalize=lufs needs them

    if samples.shape[-1] < LOUDNESS_BLOCK_SECONDS * sample_rate:
        return -math.inf
    return float(Meter(sample_rate).integrated_loudness(samples.T.double().numpy()))


def loudness_float32(samples: Float[Tensor, "a s"], sample_rate: int) -> float:
    """Integrated loudness in LUFS by torchaudio; at least -70, also where a song is silent or too short."""
    if samples.shape[1] < LOUDNESS_BLOCK_SECONDS * sample_rate or float(samples.abs().max()) < MIN_LEVEL:
        return ABSOLUTE_GATE_LUFS
    lufs = float(torchaudio.functional.loudness(samples, sample_rate))
    return max(lufs, ABSOLUTE_GATE_LUFS) if math.isfinite(lufs) else ABSOLUTE_GATE_LUFS


def gated_loudness(power: Float[Tensor, " k"]) -> float | None:
    """Integrated loudness in LUFS from K-weighted mean squares of 0.1 s; ``None`` where no block passes the gates.

    Blocks of 0.4 s, absolute gate -70 LUFS, relative gate -10 LU.
    """
    window = min(4, len(power))
    if not window:
        return None
    blocks = power.double().unfold(0, window, 1).mean(1)
    blocks = blocks[blocks > lufs_to_power(ABSOLUTE_GATE_LUFS)]
    if not len(blocks):
        return None
    blocks = blocks[blocks > blocks.mean() / 10]
    return float(-0.691 + 10 * blocks.mean().log10())


def lufs_to_power(lufs: float) -> float:
    """K-weighted mean square of a loudness."""
    return 10 ** ((lufs + 0.691) / 10)


def channel_gains(channels: int) -> Float[Tensor, " a"]:
    """BS.1770's channel weights, in WAV order: in 5.1, LFE is left out and the surround channels count 1.41."""
    return torch.tensor([1.0, 1.0, 1.0, 0.0, 1.41, 1.41] if channels == 6 else [1.0] * channels)


def k_weighting(sample_rate: int, samples: int) -> Float[Tensor, " f"]:
    """Weights that turn the squared magnitudes of an ``rfft`` of ``samples`` into the K-weighted mean square.

    By Parseval's theorem; within 0.1 LU of the standard's recursive filter on music in blocks of 0.1 s.
    """
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(samples))
    shelf = _biquad(*_high_shelf(sample_rate), z)
    high_pass = _biquad(*_high_pass(sample_rate), z)
    both_sides = np.full(len(z), 2.0)
    both_sides[0] = 1.0
    if samples % 2 == 0:
        both_sides[-1] = 1.0
    return torch.tensor(np.abs(shelf * high_pass) ** 2 * both_sides / samples**2, dtype=torch.float32)


_Coefficients = tuple[float, float, float]


def _biquad(b: _Coefficients, a: _Coefficients, z: NDArray[np.complex128]) -> NDArray[np.complex128]:
    return np.asarray((b[0] + b[1] * z + b[2] * z**2) / (a[0] + a[1] * z + a[2] * z**2), dtype=np.complex128)


def _high_shelf(rate: int) -> tuple[_Coefficients, _Coefficients]:
    """BS.1770's first stage at any rate: at 48 kHz the standard's coefficients (libebur128, ``ebur128.c``)."""
    k = np.tan(np.pi * min(1681.974450955533, 0.49 * rate) / rate)
    q, high = 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    return (high + band * k / q + k * k, 2 * (k * k - high), high - band * k / q + k * k), (
        1 + k / q + k * k,
        2 * (k * k - 1),
        1 - k / q + k * k,
    )


def _high_pass(rate: int) -> tuple[_Coefficients, _Coefficients]:
    """BS.1770's second stage at any rate."""
    k, q = np.tan(np.pi * 38.13547087602444 / rate), 0.5003270373238773
    return (1.0, -2.0, 1.0), (1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k)


def decibels(ratio: float) -> float:
    """Level in dB of an amplitude ratio."""
    return 20 * math.log10(ratio)
