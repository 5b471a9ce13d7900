"""Oracles: classifiers that measure the factors of a micro-world song in its waveform.

Signal features and multinomial logistic regression, fitted to rendered songs and to their reconstructions by the
autoencoder, so that the autoencoder's distortion does not count as an error. They share no weights with the evaluated
network. Instruments have a reject class for unknown timbres.
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
from acestep.synth import world
from acestep.synth.spectra import Spectra, extract_spectra, factor_features
from acestep.synth.world import Truth

OTHER = "other"
SILENT = "silent"
CLASSES: dict[str, tuple[str, ...]] = {
    "tempo": tuple(str(beat) for beat in world.BEAT_FRAMES),
    "keymode": tuple(f"{tonic} {mode}" for tonic in world.TONICS for mode in world.MODES),
    "instrument": (*world.INSTRUMENTS, world.UNSEEN_INSTRUMENT, OTHER),
    "drums": world.DRUMS,
    "structure": world.SECTIONS,
    "syllables": (*world.VOWELS, SILENT),
}
VALUES = {
    "tempo": world.BEAT_FRAMES,
    "key": world.TONICS,
    "mode": world.MODES,
    "instrument": world.INSTRUMENTS,
    "drums": world.DRUMS,
    "structure": world.SECTIONS,
    "syllables": world.VOWELS,
}
FACTORS = tuple(VALUES)
CHANCE = {factor: 1 / len(values) for factor, values in VALUES.items()}
"""Expected score of each factor for songs that do not depend on their prompts."""
PARAMETERS = ("mean", "scale", "weight", "bias")


def _oracle_targets(truth: Truth) -> dict[str, tuple[list[str], list[tuple[int, int]]]]:
    """For each classifier, the class names of ``truth``, and the spans of frames if it has one for each span."""
    return {
        "tempo": ([str(truth.beat_frames)], []),
        "keymode": ([truth.key], []),
        "instrument": ([truth.instrument], []),
        "drums": ([truth.drums], []),
        "structure": ([*truth.sections], [(0, truth.boundary), (truth.boundary, truth.frames)]),
        "syllables": ([syllable[-1] for syllable in truth.syllables] or [SILENT] * world.SLOTS, truth.slots),
    }


@dataclass(frozen=True)
class LogisticRegression:
    """Multinomial logistic regression of standardised features."""

    mean: Float[Tensor, " f"]
    scale: Float[Tensor, " f"]
    weight: Float[Tensor, "f k"]
    bias: Float[Tensor, " k"]

    @classmethod
    def fit(
        cls, features: Float[Tensor, "n f"], labels: Int[Tensor, " n"], classes: int, penalty: float = 2e-3
    ) -> LogisticRegression:
        """Maximum likelihood with an L2 ``penalty``, by L-BFGS from zero, which is deterministic."""
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
        """Likeliest class of each row. Features are clamped to 6 standard deviations, against outliers."""
        rows = ((features - self.mean) / self.scale).clamp(-6, 6)
        return (rows @ self.weight + self.bias).argmax(-1)


LabelledFeatures = dict[str, tuple[NDArray[np.float32], list[int]]]
"""Features and class indices of one song, by factor.

NumPy arrays, since tensors are sent between processes as open files, of which there would be too many.
"""


def labelled_features(truth: Truth, samples: Float[Tensor, "a s"]) -> LabelledFeatures:
    """A training example of the oracles; the instrument of ``truth`` may be ``OTHER``, for an unknown timbre."""
    spectra = extract_spectra(samples)
    return {
        factor: (factor_features(spectra, factor, spans).numpy(), [CLASSES[factor].index(label) for label in labels])
        for factor, (labels, spans) in _oracle_targets(truth).items()
    }


class Oracles:
    """One classifier for each factor of ``CLASSES``."""

    def __init__(self, classifiers: dict[str, LogisticRegression]) -> None:
        self.classifiers = classifiers

    @classmethod
    def fit(cls, examples: Sequence[LabelledFeatures]) -> Oracles:
        classifiers = {}
        for factor, names in CLASSES.items():
            features = torch.from_numpy(np.concatenate([example[factor][0] for example in examples]))
            labels = torch.tensor([label for example in examples for label in example[factor][1]])
            classifiers[factor] = LogisticRegression.fit(features, labels, len(names))
        return cls(classifiers)

    def predict(self, sound: Spectra | Float[Tensor, "a s"], truth: Truth) -> dict[str, list[str]]:
        """Class names measured in a waveform. Only the times of sections and syllables are taken from ``truth``."""
        spectra = sound if isinstance(sound, Spectra) else extract_spectra(sound)
        predicted = {}
        for factor, (_, spans) in _oracle_targets(truth).items():
            classes = self.classifiers[factor](factor_features(spectra, factor, spans))
            predicted[factor] = [CLASSES[factor][index] for index in classes.tolist()]
        return predicted

    def score(self, sound: Spectra | Float[Tensor, "a s"], truth: Truth) -> dict[str, float]:
        """Accuracy of each of ``FACTORS``, from 0 to 1: the share of the labels of ``truth`` that is measured."""
        predicted = self.predict(sound, truth)
        accuracy = {}
        for factor, (labels, _) in _oracle_targets(truth).items():
            pairs = zip(predicted[factor], labels, strict=True)
            accuracy[factor] = sum(label == expected for label, expected in pairs) / len(labels)
        tonic, mode = predicted["keymode"][0].split(" ")
        accuracy |= {"key": float(tonic == truth.tonic), "mode": float(mode == truth.mode)}
        return {factor: accuracy[factor] for factor in FACTORS}

    def save(self, path: Path) -> None:
        """Write all classifiers to one safetensors file, atomically."""
        tensors = {
            f"{factor}.{name}": getattr(classifier, name).half().contiguous()
            for factor, classifier in self.classifiers.items()
            for name in PARAMETERS
        }
        with atomic(path) as aside:
            save_file(tensors, aside)

    @classmethod
    def load(cls, path: Path) -> Oracles:
        """Read a file of :meth:`save`."""
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        return cls(
            {factor: LogisticRegression(*(tensors[f"{factor}.{name}"] for name in PARAMETERS)) for factor in CLASSES}
        )
