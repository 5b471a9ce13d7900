"""Prompt adherence: CLAP similarity for any song, and the oracles of the micro world for its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import Features, MissingWeightsError, check_collapse, pooled, pooled_songs
from acestep.evaluation.hashing import digest
from acestep.evaluation.metrics.base import EmbedderMetric, Scores, SongMetric
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.synth import CHANCE, Oracles, Truth, spectra, world

ORACLES = Path(__file__).parents[2] / "assets" / "micro" / "oracles.safetensors"


@dataclass(frozen=True, kw_only=True)
class ClapAdherence(EmbedderMetric, SongMetric):
    """Cosine between a song's text and audio in the joint space of a CLAP-style model (Wu et al. 2023).

    ``of_mean`` compares the text with the re-normalised mean of all windows' unit vectors, ``mean_of_windows`` with
    each window before the mean is taken; ``lowest_window`` and ``first_window`` with single windows. Raw cosines are
    comparable only within one embedder.
    """

    def applies(self, prompt: EvaluationPrompt) -> bool:
        return bool(prompt.song.caption or prompt.song.lyrics)

    def recordings(self, references: Sequence[Path]) -> Sequence[Path]:
        return references

    def fit(self, features: Sequence[Features]) -> None:
        """Raises :class:`.CollapsedError` where unrelated captions, or recordings, have nearly the same vector."""
        check_collapse(self.extractor.embed_text(self.extractor.unrelated), f"{self.extractor.name} on captions", 0.9)
        if features:
            check_collapse(pooled_songs(features), f"{self.extractor.name} on audio", 0.8)

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        """Cosines of all windows together, and of single ones."""
        text = self._text_vector(prompt)
        windows = features["windows"] @ text
        return {
            "of_mean": float(pooled(features["windows"]) @ text),
            "mean_of_windows": float(windows.mean()),
            "lowest_window": float(windows.min()),
            "first_window": float(windows[0]),
        }

    def _text_vector(self, prompt: EvaluationPrompt) -> Tensor:
        if prompt.id not in self.state:
            self.state[prompt.id] = self.extractor.embed_text([prompt.song])[0].clone()
        return self.state[prompt.id]


@dataclass(frozen=True, kw_only=True)
class OracleAdherence(SongMetric):
    """Share of a micro-world prompt's facts that the oracles recognise, by factor, and the mean over factors.

    Attributes:
        weights: the fitted oracles.
    """

    weights: str = str(ORACLES)
    name = "oracles"
    fingerprint = digest(f"oracles {spectra.RECIPE}")
    thread_safe = True

    def load(self) -> Self:
        loaded = super().load()
        _ = loaded._oracles
        return loaded

    @cached_property
    def _oracles(self) -> Oracles:
        if not Path(self.weights).is_file():
            raise MissingWeightsError(
                f"metrics.adherence.weights={self.weights}: no such file; the repository has it with weights=micro"
            )
        return Oracles.load(Path(self.weights))

    @property
    def chance(self) -> Mapping[str, float]:
        return {"mean": sum(CHANCE.values()) / len(CHANCE), **CHANCE}

    def extract(self, audio: Audio) -> Features:
        """``pitch`` (T, 72) and ``pulse`` (P, 7), and features (1, F) of prompt-independent factors."""
        if audio.sample_rate != world.SAMPLE_RATE:
            raise ValueError(f"the oracles need {world.SAMPLE_RATE} Hz, this song has {audio.sample_rate} Hz")
        song = spectra.extract_spectra(audio.samples)
        return {"pitch": song.pitch, "pulse": song.pulse} | {
            factor: spectra.factor_features(song, factor) for factor in spectra.UNTIMED
        }

    def applies(self, prompt: EvaluationPrompt) -> bool:
        return bool(prompt.truth)

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        """``mean`` over the factors, and each factor."""
        truth = Truth(**json.loads(prompt.truth))
        untimed = {factor: features[factor] for factor in spectra.UNTIMED}
        factors = self._oracles.score(spectra.Spectra(features["pitch"], features["pulse"], untimed), truth)
        return {"mean": sum(factors.values()) / len(factors), **factors}
