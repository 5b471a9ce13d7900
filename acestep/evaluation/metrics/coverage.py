"""What FAD does not show: coverage of the reference, diversity within a prompt, and memorised training songs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.data.sources import find_songs
from acestep.evaluation.embedders.base import Features, MissingWeightsError, pooled, pooled_songs
from acestep.evaluation.metrics.base import EmbedderMetric, Scores, SetMetric, SongMetric, TakesMetric
from acestep.evaluation.prompts import EvaluationPrompt


def density_coverage(
    reference: Float[Tensor, "m d"], generated: Float[Tensor, "n d"], k: int = 5
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, eqs. 3 and 4).

    Each reference vector is the centre of a ball that reaches to its ``k``-th neighbour in the reference. Density is
    the mean number of balls around a generated vector, divided by ``k``: 1 for equal distributions, above 1 near the
    modes. Coverage is the share of balls that contain any generated vector.
    """
    if len(reference) <= k or not len(generated):
        raise ValueError(f"density needs more than k={k} reference songs and a generated one, got {len(reference)}")
    reference, generated = reference.to(torch.float64), generated.to(torch.float64)
    # The smallest distance of a vector within its own set is the one to itself.
    radius = _distances(reference, reference).kthvalue(k + 1, dim=1).values
    inside = _distances(reference, generated) <= radius[:, None]
    return float(inside.double().sum() / (k * len(generated))), float(inside.any(1).double().mean())


def expected_coverage(reference: int, generated: int, k: int = 5) -> float:
    """Coverage of two samples of one distribution, as of a perfect model (Naeem et al. 2020, lemma 2)."""
    missed = 1.0
    for i in range(k):
        missed *= (reference - 1 - i) / (reference + generated - 1 - i)
    return 1.0 - missed


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True, kw_only=True)
class Coverage(EmbedderMetric, SetMetric):
    """Density and coverage over one vector a song.

    Attributes:
        k: neighbours that define the radius of a ball.
    """

    k: int = 5

    def distance(self, features: Sequence[Features], reference: Sequence[Features], same_songs: bool = False) -> Scores:
        """``coverage``, the expectation for a perfect model, and ``density``; nothing with too few recordings."""
        if len(reference) <= self.k:
            return {}
        density, coverage = density_coverage(pooled_songs(reference), pooled_songs(features), self.k)
        expected = expected_coverage(len(reference), len(features), self.k)
        return {"coverage": coverage, "coverage_of_perfect": expected, "density": density}


@dataclass(frozen=True, kw_only=True)
class Diversity(EmbedderMetric, TakesMetric):
    """Distance between songs of one prompt from different noise: needs ``takes`` of 2 or more.

    Guidance trades it for adherence, so it belongs in every sweep.
    """

    def compare_takes(self, features: Features, others: Sequence[Features]) -> Scores:
        """``distance``: 1 less the mean cosine to the other songs; 0 where all are the same."""
        return {"distance": 1.0 - float((pooled_songs(others) @ pooled(features["windows"])).mean())}


@dataclass(frozen=True, kw_only=True)
class Memorisation(EmbedderMetric, SongMetric):
    """Similarity to the nearest song of the training set.

    Attributes:
        songs: folder of the training set's recordings.
    """

    songs: str
    higher_is_better = False
    uses_prompt = False

    @cached_property
    def _training_songs(self) -> Sequence[Path]:
        songs = find_songs(Path(self.songs)) if self.songs and Path(self.songs).is_dir() else []
        if len(songs) < 2:
            raise MissingWeightsError(
                f"metrics.memorisation.songs={self.songs}: no folder with training songs; name the one that was "
                "trained on"
            )
        return songs

    def load(self) -> Self:
        """Raises :class:`MissingWeightsError` without training songs too."""
        _ = self._training_songs
        return super().load()

    def recordings(self, references: Sequence[Path]) -> Sequence[Path]:
        return self._training_songs

    def fit(self, features: Sequence[Features]) -> None:
        vectors = pooled_songs(features)
        similarity = vectors @ vectors.T
        similarity.fill_diagonal_(-2.0)
        self.state.update(vectors=vectors, nearest=similarity.amax(1))

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        """``nearest`` cosine, and ``percentile``: the share of training songs less similar to their nearest neighbour.

        Without memorisation, percentiles are like the training songs' own, around 0.5; many at 1.0 are copies.
        """
        nearest = (self.state["vectors"] @ pooled(features["windows"])).max()
        return {"nearest": float(nearest), "percentile": float((self.state["nearest"] < nearest).double().mean())}
