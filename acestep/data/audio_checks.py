"""Measurements of audio files that need no network: level, silence, clipping, truncation, and near-duplicates.

Everything is accumulated from spectra of 0.1 s, so that memory does not grow with the song.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import stream_audio
from acestep.audio.loudness import channel_gains, gated_loudness, k_weighting, lufs_to_power

STEP_SECONDS = 0.1
SILENT_LUFS = -60.0
CLIPPED = 0.999
"""Share of full scale from which a sample counts as clipped; most clipped masters stop a little below 1."""
MISSING_SHARE = 0.02
"""Share of a file's stated length that may be missing; MP3 files state an estimate."""

BANDS, SEGMENTS = 17, 33
BITS = (BANDS - 1) * (SEGMENTS - 1)
BAND_EDGES_HZ = np.geomspace(60.0, 3600.0, BANDS + 1)
COMPARED_AT_ONCE = 2048


@dataclass(frozen=True)
class AudioMeasures:
    """Measurements of one song.

    Attributes:
        seconds: duration.
        loudness: integrated, in LUFS (ITU-R BS.1770-4); ``None`` where no block passes its gates.
        peak: largest absolute sample; 1 is full scale.
        clipped: share of samples at full scale.
        silence: share of the song below -60 LUFS.
        audio_fingerprint: 512 bits in hexadecimal, which differ in few bits between copies of a song in different
            formats: signs of energy differences (Haitsma and Kalker 2002) between bands and segments of the whole
            song. Empty for songs that are too short or silent.
    """

    seconds: float
    loudness: float | None
    peak: float
    clipped: float
    silence: float
    audio_fingerprint: str

    def columns(self) -> dict[str, Any]:
        """Values by column of a latent store, where the fingerprint is called ``outline``."""
        values = asdict(self)
        return values | {"outline": values.pop("audio_fingerprint")}


class AudioMeter:
    """Measures a song block by block: ``update`` with every block, then ``compute``."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        self.sample_rate = sample_rate
        self.step = max(16, round(STEP_SECONDS * sample_rate))
        self._weights, self._bands = k_weighting(sample_rate, self.step), _band_masks(sample_rate, self.step)
        self._gains = channel_gains(channels)
        self._rest = torch.zeros(channels, 0)
        self._powers: list[Tensor] = []
        self._energies: list[Tensor] = []
        self._samples, self._clipped, self._peak = 0, 0, 0.0

    def update(self, block: Float[Tensor, "a n"]) -> None:
        """Add the next block. Raises ``ValueError`` where it holds NaN or infinity."""
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
            self._add_steps(block[:, : steps * self.step].unflatten(1, (steps, self.step)))

    def metered(self, blocks: Iterable[Float[Tensor, "a n"]]) -> Iterator[Float[Tensor, "a n"]]:
        """Pass ``blocks`` on, each after ``update``."""
        for block in blocks:
            self.update(block)
            yield block

    def compute(self, stated_samples: int) -> AudioMeasures:
        """Measurements of all blocks.

        Raises:
            ValueError: there were clearly fewer samples than the ``stated_samples`` of the file's header.
        """
        seconds, stated = self._samples / self.sample_rate, stated_samples / self.sample_rate
        if seconds < stated * (1 - MISSING_SHARE) - 0.1:
            raise ValueError(f"truncated: {seconds:.1f} s can be decoded of the {stated:.1f} s it should have")
        if self._samples and not self._powers:  # shorter than one step: padded with silence
            padding = self.step - self._rest.shape[1]
            self._add_steps(torch.nn.functional.pad(self._rest, (0, padding))[:, None])
        power = torch.cat(self._powers) if self._powers else torch.zeros(0)
        return AudioMeasures(
            seconds=seconds,
            loudness=gated_loudness(power),
            peak=self._peak,
            clipped=self._clipped / max(1, self._samples * len(self._gains)),
            silence=float((power < lufs_to_power(SILENT_LUFS)).float().mean()) if len(power) else 0.0,
            audio_fingerprint=_audio_fingerprint(torch.cat(self._energies)) if self._energies else "",
        )

    def _add_steps(self, steps: Float[Tensor, "a k n"]) -> None:
        spectra = torch.view_as_real(torch.fft.rfft(steps)).square().sum(-1)  # (a, k, bins)
        summed = torch.einsum("a,akf->kf", self._gains.to(spectra), spectra)
        self._powers.append(summed @ self._weights)
        self._energies.append(summed @ self._bands)


def measure_audio(audio: Path | bytes) -> AudioMeasures:
    """Measure a file, or the bytes of one, to its last sample.

    Raises:
        ValueError: not audio, truncated, or samples that are not finite.
        OSError: no such file.
    """
    with stream_audio(as_file(audio)) as stream:
        meter = AudioMeter(stream.sample_rate, stream.channels)
        for block in stream.blocks:
            meter.update(block)
    return meter.compute(stream.samples)


def as_file(audio: Path | bytes) -> Path | BytesIO:
    """Bytes as an open file, a path as it is."""
    return BytesIO(audio) if isinstance(audio, bytes) else audio


def find_duplicates(
    fingerprints: Sequence[str], seconds: Sequence[float], max_bit_share: float, max_seconds_apart: float
) -> Iterator[tuple[int, int]]:
    """Pairs of songs, by index, with similar audio fingerprints and durations.

    Args:
        fingerprints: of the songs, in ascending order of duration; see ``AudioMeasures``.
        seconds: durations, ascending.
        max_bit_share: largest share of differing bits: near 0 for copies, near 0.5 for other songs.
        max_seconds_apart: largest difference of durations.
    """
    data = b"".join(bytes.fromhex(fingerprint) for fingerprint in fingerprints)
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(len(fingerprints), BITS)
    signs, times = torch.from_numpy(bits.astype(np.int8) * 2 - 1), torch.tensor(seconds, dtype=torch.float64)
    threshold = BITS * (1 - 2 * max_bit_share)  # a product of signs is the number of equal less that of differing bits
    for first in range(0, len(signs), COMPARED_AT_ONCE):
        rows = slice(first, first + COMPARED_AT_ONCE)
        end = int(torch.searchsorted(times, times[rows][-1] + max_seconds_apart, right=True))
        for start in range(first, end, COMPARED_AT_ONCE):
            columns = slice(start, min(start + COMPARED_AT_ONCE, end))
            similar = signs[rows].float() @ signs[columns].float().T > threshold
            similar &= times[columns] - times[rows, None] <= max_seconds_apart
            for one, other in similar.nonzero().tolist():
                if first + one < start + other:
                    yield first + one, start + other


def _band_masks(rate: int, step: int) -> Float[Tensor, "f b"]:
    frequencies = np.fft.rfftfreq(step, 1 / rate)
    inside = (frequencies[:, None] >= BAND_EDGES_HZ[:-1]) & (frequencies[:, None] < BAND_EDGES_HZ[1:])
    return torch.tensor(inside, dtype=torch.float32)


def _audio_fingerprint(energies: Float[Tensor, "k b"]) -> str:
    if len(energies) < SEGMENTS or not energies.any():
        return ""
    edges = torch.linspace(0, len(energies), SEGMENTS + 1).round().long().tolist()
    segments = torch.stack([energies[a:b].mean(0) for a, b in pairwise(edges)])
    log_energies = (segments / segments.mean() + 1e-9).log()
    across_bands = log_energies[:, 1:] - log_energies[:, :-1]
    bits = (across_bands[1:] > across_bands[:-1]).flatten().tolist()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):0{len(bits) // 4}x}"
