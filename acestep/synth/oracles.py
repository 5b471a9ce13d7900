"""Oracles: what a micro-world song turned out to be, read back from its waveform alone.

Plain signal features and multinomial logistic regression, fitted on rendered songs and on what the autoencoder
makes of them (else its sound would be mistaken for a wrong answer). Knows no network: the judge shares nothing
with the judged. Instruments have a reject class, so that an unknown timbre is nobody's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from acestep.files import atomic
from acestep.synth.world import (
    BEAT_FRAMES,
    DRUMS,
    INSTRUMENTS,
    MODES,
    SECTIONS,
    TONICS,
    UNSEEN_INSTRUMENT,
    VOWELS,
    Truth,
)

OTHER = "other"
SILENT = "silent"
CLASSES: dict[str, tuple[str, ...]] = {
    "tempo": tuple(str(beat) for beat in BEAT_FRAMES),
    "keymode": tuple(f"{tonic} {mode}" for tonic in TONICS for mode in MODES),
    "instrument": (*INSTRUMENTS, UNSEEN_INSTRUMENT, OTHER),
    "drums": DRUMS,
    "structure": SECTIONS,
    "syllables": (*VOWELS, SILENT),
}
FACTORS = ("tempo", "key", "mode", "instrument", "drums", "structure", "syllables")
CHANCE = {
    "tempo": 1 / len(BEAT_FRAMES),
    "key": 1 / len(TONICS),
    "mode": 1 / len(MODES),
    "instrument": 1 / len(INSTRUMENTS),
    "drums": 1 / len(DRUMS),
    "structure": 1 / len(SECTIONS),
    "syllables": 1 / len(VOWELS),
}
"""Expected score of a guess that does not know the prompt, factor by factor."""

SAMPLE_RATE = 48_000
PITCH_HOP, PITCH_WINDOW = 1_920, 8_192
PULSE_HOP, PULSE_WINDOW = 480, 1_024
LOWEST_NOTE, NOTES = 40, 72
PULSE_EDGES_HZ = (30.0, 75.0, 300.0, 2_000.0, 5_200.0, 8_000.0, 12_000.0, 20_000.0)
LAGS = range(20, 164, 2)
OCTAVE_SPLIT = 12


@dataclass(frozen=True)
class Spectra:
    """Log spectra of one song: ``pitch`` per semitone at 25 Hz, ``pulse`` per wide band at 100 Hz."""

    pitch: Float[Tensor, "t n"]
    pulse: Float[Tensor, "p b"]


def listen(samples: Float[Tensor, "a s"]) -> Spectra:
    """Spectra of a 48 kHz waveform. Levels are relative to the song's own loudness."""
    mono = samples.float().mean(0)
    mono = mono / mono.square().mean().sqrt().clamp_min(1e-6)
    hz = torch.fft.rfftfreq(PITCH_WINDOW, 1 / SAMPLE_RATE)
    note = 69 + 12 * torch.log2(hz.clamp_min(1.0) / 440)
    centres = torch.arange(LOWEST_NOTE, LOWEST_NOTE + NOTES)
    width = (12 / math.log(2) * SAMPLE_RATE / PITCH_WINDOW / (440 * 2 ** ((centres - 69) / 12))).clamp_min(0.5)
    triangles = (1 - (note[:, None] - centres).abs() / width).clamp_min(0)
    pitch = _power(mono, PITCH_WINDOW, PITCH_HOP) @ triangles
    hz = torch.fft.rfftfreq(PULSE_WINDOW, 1 / SAMPLE_RATE)
    edges = list(pairwise(PULSE_EDGES_HZ))
    bands = torch.stack([((hz >= low) & (hz < high)).float() for low, high in edges], 1)
    return Spectra(torch.log10(pitch + 1e-4), torch.log10(_power(mono, PULSE_WINDOW, PULSE_HOP) @ bands + 1e-4))


def _power(signal: Float[Tensor, " s"], window: int, hop: int) -> Float[Tensor, "t f"]:
    hann = torch.hann_window(window)
    padded = torch.nn.functional.pad(signal, ((window - hop) // 2, window))
    frames = padded.unfold(0, window, hop)[: len(signal) // hop]
    return torch.fft.rfft(frames * (2 * hann / hann.sum())).abs().square()


def _autocorrelation(signal: Float[Tensor, "p b"]) -> Float[Tensor, " k"]:
    """Normalised autocorrelation at ``LAGS`` hops, band after band; zero where the song is too short."""
    signal = signal - signal.mean(0)
    spectrum = torch.fft.rfft(signal, 2 * len(signal), dim=0).abs().square()
    correlation = torch.fft.irfft(spectrum, dim=0)
    correlation = correlation / correlation[:1].clamp_min(1e-6)
    lags = torch.tensor([lag for lag in LAGS if lag < len(signal)])
    out = torch.zeros(len(LAGS), signal.shape[1])
    out[: len(lags)] = correlation[lags] * (len(signal) / (len(signal) - lags))[:, None]
    return out.flatten()


def _envelope(pulse: Float[Tensor, "p b"]) -> list[Float[Tensor, " b"]]:
    """How notes begin and end, band by band: how loud, how steeply up and how steeply down."""
    steps = pulse[1:] - pulse[:-1]
    slopes = [steps.quantile(share, dim=0) for share in (0.98, 0.9, 0.1, 0.02)]
    return [pulse.mean(0), pulse.std(0), pulse.quantile(0.9, dim=0), pulse.quantile(0.5, dim=0), *slopes]


def _onsets(pulse: Float[Tensor, "p b"]) -> Float[Tensor, "q b"]:
    return (pulse[3:] - pulse[:-3]).clamp_min(0)


def _features(spectra: Spectra, factor: str, spans: Sequence[tuple[int, int]] = ()) -> Float[Tensor, "n f"]:
    """What the oracle of ``factor`` looks at: one row, or one per span of frames for the timed factors."""
    pitch, pulse = spectra.pitch, spectra.pulse
    onsets = _onsets(pulse)
    if factor == "tempo":
        grouped = torch.stack([onsets[:, :2].sum(1), onsets[:, 2:4].sum(1), onsets[:, 4:].sum(1), onsets.sum(1)], 1)
        return _autocorrelation(grouped)[None]
    if factor == "keymode":
        level = pitch - pitch.mean(1, keepdim=True)
        strong = 10 ** pitch.mean(0)
        bass = strong[:18] / strong[:18].sum()
        folded = torch.zeros(12).index_add(0, (torch.arange(18, NOTES) + LOWEST_NOTE) % 12, strong[18:])
        sounding = pitch.quantile(0.85, dim=0)
        return torch.cat([bass, folded / folded.sum(), level.mean(0), sounding - sounding.mean()])[None]
    if factor == "instrument":
        # Seen from the bass' root, a timbre's partials fall on the same places in every key; its register does not.
        root = int(pitch[:, :12].mean(0).argmax()) + 12
        seen = pitch[:, root : root + NOTES - 24]
        moves = [seen.mean(0) - seen.mean(), seen.std(0), (seen[1:] - seen[:-1]).abs().mean(0)]
        loud, usual = pitch.quantile(0.9, dim=0), pitch.quantile(0.5, dim=0)
        levels = [loud - loud.mean(), usual - pitch.mean(0), pitch.std(0), (pitch[1:] - pitch[:-1]).abs().mean(0)]
        return torch.cat([*moves, *levels, *_envelope(pulse)])[None]
    if factor == "drums":
        rows = [pulse.mean(0), pulse.amax(0), pulse.std(0), onsets.mean(0), onsets.std(0)]
        return torch.cat([*rows, _autocorrelation(onsets[:, [0, 5, 6]])])[None]
    rows = []
    for first, last in spans:
        edge = (last - first) // 6
        inside = pitch[first + edge : max(last - edge, first + edge + 1)]
        inside = inside if len(inside) else pitch[-1:]
        mean = inside.mean(0)
        if factor == "structure":
            octaves = torch.log10((10**inside).mean(0).unflatten(0, (-1, OCTAVE_SPLIT)).sum(1) + 1e-4)
            rows.append(torch.cat([mean - mean.mean(), octaves]))
        else:
            rows.append(torch.cat([mean - mean.mean(), mean - pitch.mean(0)]))
    return torch.stack(rows)


def _spans(truth: Truth, factor: str) -> list[tuple[int, int]]:
    if factor == "syllables":
        return truth.slots
    if factor == "structure":
        return [(0, truth.boundary), (truth.boundary, truth.frames)]
    return []


def _answers(truth: Truth, factor: str) -> list[str]:
    """The class names that the truth asks for, one per row of the factor's features."""
    if factor == "structure":
        return list(truth.sections)
    if factor == "syllables":
        return [syllable[-1] for syllable in truth.syllables] or [SILENT] * len(truth.slots)
    return [{
        "tempo": str(truth.beat_frames),
        "keymode": truth.key,
        "instrument": truth.instrument,
        "drums": truth.drums,
    }[factor]]  # fmt: skip


@dataclass(frozen=True)
class Readout:
    """Multinomial logistic regression over standardised features."""

    mean: Float[Tensor, " f"]
    scale: Float[Tensor, " f"]
    weight: Float[Tensor, "f k"]
    bias: Float[Tensor, " k"]

    @classmethod
    def fit(
        cls, features: Float[Tensor, "n f"], labels: Int[Tensor, " n"], classes: int, penalty: float = 2e-3
    ) -> Readout:
        """Maximum likelihood with an L2 ``penalty``, by L-BFGS from zero: no randomness."""
        mean, scale = features.mean(0), features.std(0).clamp_min(1e-4)
        rows = (features - mean) / scale
        weight = torch.zeros(features.shape[1], classes, requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=150, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(rows @ weight + bias, labels) + penalty * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return cls(mean, scale, weight.detach(), bias.detach())

    def __call__(self, features: Float[Tensor, "n f"]) -> Int[Tensor, " n"]:
        """Most likely class of every row. Features are limited to 6 deviations, so that no outlier decides alone."""
        rows = ((features - self.mean) / self.scale).clamp(-6, 6)
        return (rows @ self.weight + self.bias).argmax(-1)


Observation = dict[str, tuple[NDArray[np.float32], list[int]]]
"""Of one song, by factor: the features its oracle looks at, and the classes it should find in them.

Arrays, since tensors cross from process to process as open files, of which there are not enough.
"""


def observe(truth: Truth, samples: Float[Tensor, "a s"], instrument: str) -> Observation:
    """A song of known truth as the oracles see it. ``instrument`` is the truth's, or ``OTHER`` for one unnamed."""
    spectra = listen(samples)
    seen = {}
    for factor, names in CLASSES.items():
        answers = [instrument] if factor == "instrument" else _answers(truth, factor)
        rows = _features(spectra, factor, _spans(truth, factor)).numpy()
        seen[factor] = rows, [names.index(name) for name in answers]
    return seen


class Oracles:
    """One readout a factor. ``score`` compares what is heard with what was asked."""

    def __init__(self, readouts: dict[str, Readout]) -> None:
        self.readouts = readouts

    @classmethod
    def fit(cls, observations: Sequence[Observation]) -> Oracles:
        """Fit every factor on observed songs of known truth."""
        readouts = {}
        for factor, names in CLASSES.items():
            rows = torch.from_numpy(np.concatenate([observation[factor][0] for observation in observations]))
            labels = torch.tensor([label for observation in observations for label in observation[factor][1]])
            readouts[factor] = Readout.fit(rows, labels, len(names))
        return cls(readouts)

    def heard(self, sound: Spectra | Float[Tensor, "a s"], truth: Truth) -> dict[str, list[str]]:
        """Class names heard in a waveform. ``truth`` only says when its sections and syllables should fall."""
        spectra = sound if isinstance(sound, Spectra) else listen(sound)
        return {
            factor: [CLASSES[factor][i] for i in readout(_features(spectra, factor, _spans(truth, factor))).tolist()]
            for factor, readout in self.readouts.items()
        }

    def score(self, sound: Spectra | Float[Tensor, "a s"], truth: Truth) -> dict[str, float]:
        """Factor by factor, the share of what ``truth`` asks for that is heard in the waveform, from 0 to 1."""
        heard = self.heard(sound, truth)
        shares = {}
        for factor in heard:
            pairs = list(zip(heard[factor], _answers(truth, factor), strict=True))
            shares[factor] = sum(got == asked for got, asked in pairs) / len(pairs)
        (key,) = heard["keymode"]
        tonic, mode = key.split(" ")
        del shares["keymode"]
        shares |= {"key": float(tonic == truth.tonic), "mode": float(mode == truth.mode)}
        return {factor: shares[factor] for factor in FACTORS}

    def save(self, path: Path) -> None:
        """Write all readouts to one safetensors file, aside and then renamed."""
        tensors = {
            f"{factor}.{name}": getattr(readout, name).half().contiguous()
            for factor, readout in self.readouts.items()
            for name in ("mean", "scale", "weight", "bias")
        }
        with atomic(path) as aside:
            save_file(tensors, aside)

    @classmethod
    def load(cls, path: Path) -> Oracles:
        """Read what :meth:`save` wrote."""
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        names = ("mean", "scale", "weight", "bias")
        return cls({factor: Readout(*(tensors[f"{factor}.{name}"] for name in names)) for factor in CLASSES})
