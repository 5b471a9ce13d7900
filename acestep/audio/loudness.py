"""How loud a finished song is: the levels that one can ask for. Knows samples; knows no song and no file."""

from __future__ import annotations

import logging
import math
from enum import Enum

from jaxtyping import Float
from torch import Tensor

PEAK = 10 ** (-1 / 20)
"""-1 dBFS."""
SILENT = 1e-6
TARGET_LUFS = -14.0
"""What the large streaming services play at."""

logger = logging.getLogger(__name__)


class Normalize(Enum):
    """What happens to a song's level after decoding. Nothing clips: where a peak would, the whole song is turned down.

    ``peak`` scales every song to a peak of -1 dBFS, as upstream does; ``lufs`` to an integrated loudness of -14 LUFS
    (ITU-R BS.1770-4, by pyloudnorm), or as near as a peak of -1 dBFS allows; ``none`` only divides by a peak above 1.
    Loudness is not to be judged on ``peak``.
    """

    peak = "peak"
    lufs = "lufs"
    none = "none"


def levelled(
    samples: Float[Tensor, "a s"], normalize: Normalize, sample_rate: int, name: str = "a song"
) -> Float[Tensor, "a s"]:
    """A song at the level that ``normalize`` names (upstream ``generate_music_decode.py``, ``audio_utils.py``).

    Changes ``samples`` in place, since ten minutes of them are a quarter of a gigabyte. ``name`` is what a warning
    calls it, where its level is not what was asked for.
    """
    low, high = samples.aminmax()
    peak = float(max(-low, high))
    if normalize is Normalize.none:
        if peak <= 1:
            return samples
        logger.warning("%s: its peak of %.2f would clip; it was turned down by %.1f dB", name, peak, _decibels(peak))
        return samples.div_(peak)
    if peak < SILENT:
        logger.warning("%s: is silent", name)
        return samples
    if normalize is Normalize.peak:
        return samples.mul_(PEAK / peak)
    return samples.mul_(_gain_to_target(samples, sample_rate, peak, name))


def loudness(samples: Float[Tensor, "a s"], sample_rate: int) -> float:
    """Integrated loudness in LUFS; minus infinity where a song is silent or shorter than a block of 0.4 s."""
    from pyloudnorm import Meter  # here, since it loads scipy's filters, and few ask for it

    meter = Meter(sample_rate)
    if samples.shape[-1] < meter.block_size * sample_rate:
        return -math.inf
    return float(meter.integrated_loudness(samples.T.double().numpy()))


def _gain_to_target(samples: Tensor, sample_rate: int, peak: float, name: str) -> float:
    measured = loudness(samples, sample_rate)
    if measured == -math.inf:
        logger.warning("%s: is too short or quiet for its loudness to be measured; its peak was set instead", name)
        return PEAK / peak
    gain = 10 ** ((TARGET_LUFS - measured) / 20)
    if peak * gain <= PEAK:
        return gain
    reached = TARGET_LUFS - _decibels(peak * gain / PEAK)
    logger.warning("%s: at %.0f LUFS it would clip; its peak allows %.1f LUFS", name, TARGET_LUFS, reached)
    return PEAK / peak


def _decibels(ratio: float) -> float:
    return 20 * math.log10(ratio)
