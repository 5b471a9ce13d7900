"""What FAD is blind to: whether songs cover the reference, differ from each other, and are not learnt by heart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.data.sources import find_songs
from acestep.evaluation.embedders.base import MissingWeightsError, pooled
from acestep.evaluation.embedders.cache import Heard
from acestep.evaluation.metrics.base import EmbedderEar, EmbedderSpec, Unprompted, loaded
from acestep.evaluation.prompts import Prompt


def density_coverage(
    reference: Float[Tensor, "m d"], generated: Float[Tensor, "n d"], k: int = 5
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, eqs. 3 and 4).

    Around each reference vector lies a ball up to its ``k``-th neighbour in the reference. Density is how many balls
    hold a generated vector, in units of ``k``: 1 where both sets have one distribution, above 1 near the modes.
    Coverage is the share of balls that hold any generated vector.
    """
    if len(reference) <= k or not len(generated):
        raise ValueError(f"density needs more than k={k} reference songs and a generated one, got {len(reference)}")
    reference, generated = reference.to(torch.float64), generated.to(torch.float64)
    # The smallest distance of a vector within its own set is the one to itself.
    radius = _distances(reference, reference).kthvalue(k + 1, dim=1).values
    inside = _distances(reference, generated) <= radius[:, None]
    return float(inside.double().sum() / (k * len(generated))), float(inside.any(1).double().mean())


def expected_coverage(reference: int, generated: int, k: int = 5) -> float:
    """Coverage of two samples of one distribution (Naeem et al. 2020, lemma 2): what a perfect model gets."""
    missed = 1.0
    for i in range(k):
        missed *= (reference - 1 - i) / (reference + generated - 1 - i)
    return 1.0 - missed


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Density and coverage over one vector a song.

    Attributes:
        embedder: what hears.
        k: neighbours that make a ball.
    """

    embedder: EmbedderSpec
    k: int = 5

    def load(self) -> CoverageScorer:
        """The scorer."""
        return CoverageScorer(EmbedderEar(loaded(self.embedder)), self.k)


@dataclass(frozen=True)
class CoverageScorer:
    """What :class:`Coverage` configures."""

    ear: EmbedderEar
    k: int

    def distance(
        self, heard: Sequence[Heard], reference: Sequence[Heard], same_songs: bool = False
    ) -> dict[str, float]:
        """``coverage``, what a perfect model would reach, and ``density``; nothing with too few recordings."""
        if len(reference) <= self.k:
            return {}
        density, coverage = density_coverage(_vectors(reference), _vectors(heard), self.k)
        expected = expected_coverage(len(reference), len(heard), self.k)
        return {"coverage": coverage, "coverage_of_perfect": expected, "density": density}


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """How far songs of one prompt from different noise lie apart: needs ``takes`` of 2 or more.

    Guidance buys adherence with it, so it belongs beside every sweep.
    """

    embedder: EmbedderSpec

    def load(self) -> DiversityScorer:
        """The scorer."""
        return DiversityScorer(EmbedderEar(loaded(self.embedder)))


@dataclass(frozen=True)
class DiversityScorer:
    """What :class:`Diversity` configures."""

    ear: EmbedderEar

    def among(self, heard: Heard, others: Sequence[Heard]) -> dict[str, float]:
        """``distance``: 1 less the mean cosine to the other songs; 0 where all are the same."""
        return {"distance": 1.0 - float((_vectors(others) @ pooled(heard["windows"])).mean())}


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Likeness to the nearest song of the training set.

    Attributes:
        embedder: what hears.
        songs: folder of the training set's recordings.
    """

    embedder: EmbedderSpec
    songs: str

    def load(self) -> MemorisationScorer:
        """The scorer. Raises :class:`MissingWeightsError` if no training songs are named."""
        found = find_songs(Path(self.songs)) if self.songs and Path(self.songs).is_dir() else []
        if len(found) < 2:
            raise MissingWeightsError(
                f"metrics.memorisation.songs={self.songs}: no folder with training songs; name the one that was "
                "trained on"
            )
        return MemorisationScorer(EmbedderEar(loaded(self.embedder)), tuple(found))


@dataclass(frozen=True)
class MemorisationScorer(Unprompted):
    """What :class:`Memorisation` configures. The suite hears ``corpus`` and hands it to :meth:`learn`."""

    ear: EmbedderEar
    corpus: tuple[Path, ...]
    goal = "lowest"
    _known: dict[str, Tensor] = field(default_factory=dict)

    def learn(self, corpus: Sequence[Heard]) -> None:
        """Take in the training songs, and how like each other they are."""
        vectors = _vectors(corpus)
        likeness = vectors @ vectors.T
        likeness.fill_diagonal_(-2.0)
        self._known.update(vectors=vectors, nearest=likeness.amax(1))

    def score(self, heard: Heard, prompt: Prompt) -> dict[str, float]:
        """``nearest`` cosine, and ``percentile``: the share of training songs less like their own nearest neighbour.

        Songs of a model that has learnt nothing by heart lie at percentiles like the training songs' own, around 0.5;
        a crowd at 1.0 is copied.
        """
        nearest = (self._known["vectors"] @ pooled(heard["windows"])).max()
        return {"nearest": float(nearest), "percentile": float((self._known["nearest"] < nearest).double().mean())}


def _vectors(songs: Sequence[Heard]) -> Float[Tensor, "n d"]:
    return torch.stack([pooled(one["windows"]) for one in songs])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
