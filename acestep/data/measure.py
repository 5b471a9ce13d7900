"""What a song's waveform says without any network: level, silence, clipping, and a fingerprint to find doubles by.

All of it is summed up block by block from spectra of 0.1 s, so that a song of any length costs the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

STEP_SECONDS = 0.1
SILENT_LUFS = -60.0
PEAK = 10 ** (-1 / 20)
TARGET_LUFS = -14.0
CLIPPED = 0.999
"""Of full scale: what lies beyond is cut off in most masters that clip."""

BANDS, SEGMENTS = 17, 33
BITS = (BANDS - 1) * (SEGMENTS - 1)
BLOCK = 2048
"""Songs that are compared with as many at a time."""
_BAND_EDGES_HZ = np.geomspace(60.0, 3600.0, BANDS + 1)


@dataclass(frozen=True)
class Measures:
    """Of one song.

    Attributes:
        seconds: duration.
        loudness: integrated, in LUFS (ITU-R BS.1770-4); ``None`` where nothing passes its gates.
        peak: largest absolute sample; 1 is full scale.
        clipped: share of samples at full scale.
        silence: share of the song below -60 LUFS.
        outline: 512 bits of its shape in time and frequency, as hexadecimal digits; those of two copies of a song in
            different formats differ in few bits (after Haitsma and Kalker 2002, whose signs of energy differences
            these are, over whole songs). Empty for what is too short or silent.
    """

    seconds: float
    loudness: float | None
    peak: float
    clipped: float
    silence: float
    outline: str


class Listener:
    """Hears a song block by block; ``measures`` says what it heard.

    The filter that loudness is weighted by acts on the spectrum of each 0.1 s, not on the waveform: within 0.1 LU of
    the standard's recursive filter on music.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self.sample_rate = sample_rate
        self.step = max(16, round(STEP_SECONDS * sample_rate))
        self._weights, self._bands = _weighting(sample_rate, self.step), _bands(sample_rate, self.step)
        # BS.1770 leaves out the low-frequency channel and counts surround channels as 1.41; the order is that of WAV.
        gains = [1.0, 1.0, 1.0, 0.0, 1.41, 1.41] if channels == 6 else [1.0] * channels
        self._gains = torch.tensor(gains)
        self._rest = torch.zeros(channels, 0)
        self._powers: list[Tensor] = []
        self._energies: list[Tensor] = []
        self._samples, self._clipped, self._peak = 0, 0, 0.0

    def __call__(self, block: Float[Tensor, "a n"]) -> None:
        """Hear the next block. Raises ``ValueError`` where it holds what is no number."""
        if not block.numel():
            return
        level = block.abs()
        peak = float(level.max())
        if not math.isfinite(peak):
            raise ValueError("samples that are not numbers")
        self._peak = max(self._peak, peak)
        if self._peak >= CLIPPED:
            self._clipped += int((level >= CLIPPED).sum())
        self._samples += block.shape[1]
        block = torch.cat([self._rest, block], dim=1)
        steps = block.shape[1] // self.step
        self._rest = block[:, steps * self.step :].clone()
        if steps:
            self._hear(block[:, : steps * self.step].unflatten(1, (steps, self.step)))

    def measures(self) -> Measures:
        """Of everything heard."""
        if self._samples and not self._powers:  # shorter than one step: as if silence followed
            padding = self.step - self._rest.shape[1]
            self._hear(torch.nn.functional.pad(self._rest, (0, padding))[:, None])
        power = torch.cat(self._powers) if self._powers else torch.zeros(0)
        return Measures(
            seconds=self._samples / self.sample_rate,
            loudness=_integrated(power),
            peak=self._peak,
            clipped=self._clipped / max(1, self._samples * len(self._gains)),
            silence=float((power < _power(SILENT_LUFS)).float().mean()) if len(power) else 0.0,
            outline=_outline(torch.cat(self._energies)) if self._energies else "",
        )

    def _hear(self, steps: Float[Tensor, "a k n"]) -> None:
        spectra = torch.view_as_real(torch.fft.rfft(steps)).square().sum(-1)  # (a, k, bins)
        summed = torch.einsum("a,akf->kf", self._gains.to(spectra), spectra)
        self._powers.append(summed @ self._weights)
        self._energies.append(summed @ self._bands)


def copies(outlines: Sequence[str], seconds: Sequence[float], most: float, apart: float) -> Iterator[tuple[int, int]]:
    """Pairs of songs that sound alike.

    Args:
        outlines: of the songs, in the order of their durations.
        seconds: durations, ascending.
        most: the largest share of bits in which two outlines may differ: near 0 for copies, near 0.5 for other songs.
        apart: the largest difference of durations.
    """
    data = b"".join(bytes.fromhex(outline) for outline in outlines)
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(len(outlines), BITS)
    signs, times = torch.from_numpy(bits.astype(np.int8) * 2 - 1), torch.tensor(seconds, dtype=torch.float64)
    alike = BITS * (1 - 2 * most)  # a product of signs counts bits that agree, less those that differ
    for first in range(0, len(signs), BLOCK):
        rows = slice(first, first + BLOCK)
        end = int(torch.searchsorted(times, times[rows][-1] + apart, right=True))
        for start in range(first, end, BLOCK):
            columns = slice(start, min(start + BLOCK, end))
            found = signs[rows].float() @ signs[columns].float().T > alike
            found &= times[columns] - times[rows, None] <= apart
            for one, other in found.nonzero().tolist():
                if first + one < start + other:
                    yield first + one, start + other


def _weighting(rate: int, step: int) -> Float[Tensor, " f"]:
    """What turns squared magnitudes of a step's spectrum into its K-weighted mean square (Parseval)."""
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(step))
    shelf = _biquad(*_high_shelf(rate), z)
    high_pass = _biquad(*_high_pass(rate), z)
    both_sides = np.full(len(z), 2.0)
    both_sides[0] = 1.0
    if step % 2 == 0:
        both_sides[-1] = 1.0
    return torch.tensor(np.abs(shelf * high_pass) ** 2 * both_sides / step**2, dtype=torch.float32)


def _biquad(b: tuple[float, float, float], a: tuple[float, float, float], z: np.ndarray) -> np.ndarray:
    return (b[0] + b[1] * z + b[2] * z**2) / (a[0] + a[1] * z + a[2] * z**2)


def _high_shelf(rate: int) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """BS.1770's first stage at any rate: its coefficients at 48 kHz are this filter's (libebur128, ``ebur128.c``)."""
    k = np.tan(np.pi * min(1681.974450955533, 0.49 * rate) / rate)
    q, high = 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    return (high + band * k / q + k * k, 2 * (k * k - high), high - band * k / q + k * k), (
        1 + k / q + k * k,
        2 * (k * k - 1),
        1 - k / q + k * k,
    )


def _high_pass(rate: int) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """BS.1770's second stage at any rate."""
    k, q = np.tan(np.pi * 38.13547087602444 / rate), 0.5003270373238773
    return (1.0, -2.0, 1.0), (1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k)


def _bands(rate: int, step: int) -> Float[Tensor, "f b"]:
    frequencies = np.fft.rfftfreq(step, 1 / rate)
    inside = (frequencies[:, None] >= _BAND_EDGES_HZ[:-1]) & (frequencies[:, None] < _BAND_EDGES_HZ[1:])
    return torch.tensor(inside, dtype=torch.float32)


def _power(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def _integrated(power: Float[Tensor, " k"]) -> float | None:
    """Gated loudness of mean squares of 0.1 s: blocks of 0.4 s, absolute gate -70 LUFS, relative gate -10 LU."""
    window = min(4, len(power))
    if not window:
        return None
    blocks = power.double().unfold(0, window, 1).mean(1)
    blocks = blocks[blocks > _power(-70.0)]
    if not len(blocks):
        return None
    blocks = blocks[blocks > blocks.mean() / 10]
    return float(-0.691 + 10 * blocks.mean().log10())


def _outline(energies: Float[Tensor, "k b"]) -> str:
    if len(energies) < SEGMENTS or not energies.any():
        return ""
    edges = torch.linspace(0, len(energies), SEGMENTS + 1).round().long().tolist()
    segments = torch.stack([energies[a:b].mean(0) for a, b in pairwise(edges)])
    shape = (segments / segments.mean() + 1e-9).log()
    across_bands = shape[:, 1:] - shape[:, :-1]
    bits = (across_bands[1:] > across_bands[:-1]).flatten().tolist()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):0{len(bits) // 4}x}"


class Level(Enum):
    """What happens to a song's level before it is encoded.

    ``none`` leaves it, as upstream does. ``peak`` brings every song's peak to -1 dBFS. ``lufs`` brings its loudness to
    -14 LUFS, or as near as a peak of -1 dBFS allows. The last two read every file twice.
    """

    none = "none"
    peak = "peak"
    lufs = "lufs"

    def gain(self, measures: Measures) -> float:
        """The factor for a song."""
        if self is Level.none or measures.peak == 0 or measures.loudness is None:
            return 1.0
        full = PEAK / measures.peak
        return full if self is Level.peak else min(full, 10 ** ((TARGET_LUFS - measures.loudness) / 20))
