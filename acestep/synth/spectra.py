"""Spectra of a waveform, and the features of each factor that the oracles classify."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from acestep.synth.world import SAMPLE_RATE

PITCH_HOP, PITCH_WINDOW = 1_920, 8_192
PULSE_HOP, PULSE_WINDOW = 480, 1_024
LOWEST_NOTE, NOTES = 40, 72
PULSE_EDGES_HZ = (30.0, 75.0, 300.0, 2_000.0, 5_200.0, 8_000.0, 12_000.0, 20_000.0)
LAGS = range(20, 164, 2)
OCTAVE_SPLIT = 12
BLOCK = 2**18
"""Samples of windows transformed at a time: few enough for a core's cache."""
RECIPE = (2, PITCH_HOP, PITCH_WINDOW, PULSE_HOP, PULSE_WINDOW, LOWEST_NOTE, NOTES, PULSE_EDGES_HZ, LAGS, OCTAVE_SPLIT)
"""Identity of spectra and features in caches; the first number is incremented when their computation changes."""
UNTIMED, TIMED = ("tempo", "keymode", "instrument", "drums"), ("structure", "syllables")
"""Factors with features of the whole song, and factors with features at given times."""


@dataclass(frozen=True)
class Spectra:
    """Log spectra of one song: ``pitch`` per semitone at 25 Hz, ``pulse`` per wide band at 100 Hz.

    ``untimed`` caches the features of :data:`UNTIMED`, for a song that is scored against several truths.
    """

    pitch: Float[Tensor, "t n"]
    pulse: Float[Tensor, "p b"]
    untimed: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)


def extract_spectra(samples: Float[Tensor, "a s"]) -> Spectra:
    """Spectra of a 48 kHz waveform, normalised to its root mean square.

    Raises:
        ValueError: the waveform is shorter than two frames.
    """
    if samples.shape[-1] < 2 * PITCH_HOP:
        raise ValueError(f"the oracles need at least {2 * PITCH_HOP} samples, this song has {samples.shape[-1]}")
    mono = samples.float().mean(0)
    mono = mono / mono.square().mean().sqrt().clamp_min(1e-6)
    pitch = _filter_power(mono, PITCH_WINDOW, PITCH_HOP, _pitch_filters())
    pulse = _filter_power(mono, PULSE_WINDOW, PULSE_HOP, _pulse_filters())
    return Spectra(torch.log10(pitch + 1e-4), torch.log10(pulse + 1e-4))


@cache
def _pitch_filters() -> Float[Tensor, "f n"]:
    """Triangular filters around every note, each as wide as a semitone or, if that is wider, one bin."""
    hz = torch.fft.rfftfreq(PITCH_WINDOW, 1 / SAMPLE_RATE)
    note = 69 + 12 * torch.log2(hz.clamp_min(1.0) / 440)
    centres = torch.arange(LOWEST_NOTE, LOWEST_NOTE + NOTES)
    width = (12 / math.log(2) * SAMPLE_RATE / PITCH_WINDOW / (440 * 2 ** ((centres - 69) / 12))).clamp_min(0.5)
    return _without_zero_rows((1 - (note[:, None] - centres).abs() / width).clamp_min(0))


@cache
def _pulse_filters() -> Float[Tensor, "f b"]:
    hz = torch.fft.rfftfreq(PULSE_WINDOW, 1 / SAMPLE_RATE)
    bands = [((hz >= low) & (hz < high)).float() for low, high in pairwise(PULSE_EDGES_HZ)]
    return _without_zero_rows(torch.stack(bands, 1))


def _without_zero_rows(filters: Float[Tensor, "f b"]) -> Float[Tensor, "g b"]:
    """The filters up to the highest frequency at which any is not zero."""
    return filters[: int(filters.any(1).nonzero().max()) + 1].contiguous()


def _filter_power(
    signal: Float[Tensor, " s"], window: int, hop: int, filters: Float[Tensor, "f b"]
) -> Float[Tensor, "t b"]:
    """Power of each filter's output in each frame."""
    hann = torch.hann_window(window)
    hann = 2 * hann / hann.sum()
    padded = F.pad(signal, ((window - hop) // 2, window))
    powers = []
    for frames in padded.unfold(0, window, hop)[: len(signal) // hop].split(BLOCK // window):
        spectrum = torch.fft.rfft(frames * hann)[:, : len(filters)]
        powers.append((spectrum.real.square() + spectrum.imag.square()) @ filters)
    return torch.cat(powers)


def _autocorrelation(signal: Float[Tensor, "p b"]) -> Float[Tensor, " k"]:
    """Normalised autocorrelation of each band at lags of ``LAGS`` hops; zero at lags longer than the song."""
    signal = signal - signal.mean(0)
    spectrum = torch.fft.rfft(signal, 2 * len(signal), dim=0).abs().square()
    correlation = torch.fft.irfft(spectrum, dim=0)
    correlation = correlation / correlation[:1].clamp_min(1e-6)
    lags = torch.tensor([lag for lag in LAGS if lag < len(signal)], dtype=torch.long)
    out = torch.zeros(len(LAGS), signal.shape[1])
    out[: len(lags)] = correlation[lags] * (len(signal) / (len(signal) - lags))[:, None]
    return out.flatten()


def _envelope(pulse: Float[Tensor, "p b"]) -> list[Float[Tensor, " b"]]:
    """Level and slope statistics of each band, which depend on attack and decay of the notes."""
    slopes = _quantiles(pulse[1:] - pulse[:-1], 0.98, 0.9, 0.1, 0.02)
    return [pulse.mean(0), pulse.std(0), *_quantiles(pulse, 0.9, 0.5), *slopes]


def _quantiles(rows: Float[Tensor, "n f"], *shares: float) -> Float[Tensor, "q f"]:
    """Several quantiles of each column, from one sort."""
    return rows.quantile(torch.tensor(shares), dim=0)


def _onsets(pulse: Float[Tensor, "p b"]) -> Float[Tensor, "q b"]:
    return (pulse[3:] - pulse[:-3]).clamp_min(0)


def factor_features(spectra: Spectra, factor: str, spans: Sequence[tuple[int, int]] = ()) -> Float[Tensor, "n f"]:
    """Features of ``factor``: one row, or for the timed factors one row for each span of frames."""
    if factor in TIMED:
        return _timed(spectra.pitch, factor, spans)
    if factor not in spectra.untimed:
        spectra.untimed[factor] = _untimed(spectra.pitch, spectra.pulse, factor)[None]
    return spectra.untimed[factor]


def _untimed(pitch: Float[Tensor, "t n"], pulse: Float[Tensor, "p b"], factor: str) -> Float[Tensor, " f"]:
    onsets = _onsets(pulse)
    if factor == "tempo":
        grouped = torch.stack([onsets[:, :2].sum(1), onsets[:, 2:4].sum(1), onsets[:, 4:].sum(1), onsets.sum(1)], 1)
        return _autocorrelation(grouped)
    if factor == "keymode":
        level = pitch - pitch.mean(1, keepdim=True)
        strong = 10 ** pitch.mean(0)
        bass = strong[:18] / strong[:18].sum()
        folded = torch.zeros(12).index_add(0, (torch.arange(18, NOTES) + LOWEST_NOTE) % 12, strong[18:])
        sounding = pitch.quantile(0.85, dim=0)
        return torch.cat([bass, folded / folded.sum(), level.mean(0), sounding - sounding.mean()])
    if factor == "instrument":
        # Relative to the bass' root, a timbre's partials are at the same notes in every key; its register is not.
        root = int(pitch[:, :12].mean(0).argmax()) + 12
        partials = pitch[:, root : root + NOTES - 24]
        relative = [partials.mean(0) - partials.mean(), partials.std(0), (partials[1:] - partials[:-1]).abs().mean(0)]
        high, median = _quantiles(pitch, 0.9, 0.5)
        levels = [high - high.mean(), median - pitch.mean(0), pitch.std(0), (pitch[1:] - pitch[:-1]).abs().mean(0)]
        return torch.cat([*relative, *levels, *_envelope(pulse)])
    rows = [pulse.mean(0), pulse.amax(0), pulse.std(0), onsets.mean(0), onsets.std(0)]
    return torch.cat([*rows, _autocorrelation(onsets[:, [0, 5, 6]])])


def _timed(pitch: Float[Tensor, "t n"], factor: str, spans: Sequence[tuple[int, int]]) -> Float[Tensor, "m f"]:
    """Features of the inner two thirds of each span, clamped to the length of the song."""
    first, last = torch.tensor(spans).T
    edge = (last - first) // 6
    begin = (first + edge).clamp_max(len(pitch) - 1)
    end = torch.maximum(last - edge, begin + 1).clamp_max(len(pitch))
    mean = _span_means(pitch, begin, end)
    shape = mean - mean.mean(1, keepdim=True)
    if factor == "structure":
        octaves = _span_means(10**pitch, begin, end).unflatten(1, (-1, OCTAVE_SPLIT)).sum(2)
        return torch.cat([shape, torch.log10(octaves + 1e-4)], dim=1)
    return torch.cat([shape, mean - pitch.mean(0)], dim=1)


def _span_means(rows: Float[Tensor, "t n"], begin: Int[Tensor, " m"], end: Int[Tensor, " m"]) -> Float[Tensor, "m n"]:
    """Mean of the rows from ``begin`` to before ``end``, by differences of cumulative sums."""
    sums = F.pad(rows.double().cumsum(0), (0, 0, 1, 0))
    return ((sums[end] - sums[begin]) / (end - begin)[:, None]).to(rows.dtype)
