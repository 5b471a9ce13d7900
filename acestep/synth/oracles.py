"""Oracles: what a micro-world song turned out to be, read back from its waveform alone.

Plain signal features and multinomial logistic regression, fitted on rendered songs and on what the autoencoder
makes of them (else its sound would be mistaken for a wrong answer). Knows no network: the judge shares nothing
with the judged. Instruments have a reject class, so that an unknown timbre is nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from acestep.files import atomic
from acestep.synth.spectra import Spectra, features, listen
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
        rows = features(spectra, factor, _spans(truth, factor)).numpy()
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
            factor: [CLASSES[factor][i] for i in readout(features(spectra, factor, _spans(truth, factor))).tolist()]
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
