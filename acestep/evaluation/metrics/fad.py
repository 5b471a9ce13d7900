"""Fréchet audio distance between sets of embedding windows, and its extrapolation to infinitely many songs.

The distance of N sampled songs to the truth is biased upwards by about tr(covariance) / N and more; the bias falls as
1/N, so a line through distances at several N, drawn *without* replacement and by whole songs, meets the axis at the
unbiased value (FAD-infinity; Gui et al., ICASSP 2024). Drawing with replacement extrapolates to the sample's own
distance, and drawing windows of a song as if they were independent leaves most of the bias in.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acestep.evaluation.embedders.base import Features
from acestep.evaluation.metrics.base import EmbedderMetric, Scores, SetMetric, SongMetric
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.evaluation.statistics import population_std
from acestep.files import atomic

MIN_SONGS = 8
"""Fewer songs get neither an error nor an extrapolation."""


@dataclass(frozen=True)
class Gaussian:
    """A mean and a covariance, float64: with float32 sums the Fréchet distance loses its fourth digit.

    ``n`` is the number of windows behind them, ``None`` where the source did not record it.
    """

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]
    n: int | None = None

    def __post_init__(self) -> None:
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.covariance).all()):
            raise ValueError("embedding statistics hold NaN or infinity: exclude the songs that produced them")

    @classmethod
    def fit(cls, windows: Float[Tensor, "w d"]) -> Gaussian:
        """Mean and unbiased covariance (divided by n - 1). Raises ``ValueError`` below 2 windows or for NaN."""
        mean, scatter = _mean_and_scatter(windows)
        if len(windows) < 2:
            raise ValueError("one embedding window has no covariance: need at least 2 windows in all")
        return cls(mean, scatter / (len(windows) - 1), len(windows))


def write_statistics(
    path: str | Path,
    windows: Float[Tensor, "w d"],
    name: str,
    songs: int,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Reference statistics as ``.npz``: fadtk's keys (``NAME.mu``, ``NAME.cov``), counts, scatter and settings.

    Args:
        path: the file, replaced atomically.
        windows: embedding windows of all songs.
        name: the embedding's name, as fadtk would call it.
        songs: number of files behind the windows.
        settings: what produced the embeddings (weights hash, sample rate, window, hop...), kept as JSON.
    """
    gaussian = Gaussian.fit(windows)
    mean, covariance = gaussian.mean.numpy(), gaussian.covariance.numpy()
    values: dict[str, Any] = {
        f"{name}.mu": mean,
        f"{name}.cov": covariance,
        "mu": mean,
        "cov": covariance,
        "scatter": _mean_and_scatter(windows)[1].numpy(),
        "n_windows": np.int64(len(windows)),
        "n_files": np.int64(songs),
        "settings": np.frombuffer(json.dumps({"embedding": name, **(settings or {})}).encode(), np.uint8),
    }
    with atomic(path) as aside, aside.open("wb") as file:
        np.savez(file, **values)


def read_statistics(path: str | Path, name: str) -> Gaussian:
    """Statistics that this project, fadtk (``NAME.mu``), pytorch-fid (``mu``) or stable-audio-metrics wrote.

    Raises:
        ValueError: the file holds none of these, or another embedding.
    """
    with np.load(path, allow_pickle=False) as file:
        for mean, covariance in ((f"{name}.mu", f"{name}.cov"), ("mu", "sigma"), ("mu_ref", "sigma_ref")):
            if mean in file and covariance in file:
                n = int(file["n_windows"]) if "n_windows" in file else None
                first, second = (torch.from_numpy(np.asarray(file[key], np.float64)) for key in (mean, covariance))
                return Gaussian(first, second, n)
        raise ValueError(f"{path}: no statistics of {name}; the file holds {', '.join(sorted(file.files))}")


def _mean_and_scatter(windows: Float[Tensor, "w d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Mean and sum of outer products of deviations. Raises ``ValueError`` on an empty set or a value not finite."""
    if windows.ndim != 2 or len(windows) == 0:
        raise ValueError(f"embedding windows of shape {tuple(windows.shape)}: need (windows >= 1, dimensions)")
    windows = windows.to(torch.float64)
    if not torch.isfinite(windows).all():
        raise ValueError("an embedding window holds NaN or infinity: exclude the song that produced it")
    mean = windows.mean(0)
    centred = windows - mean
    return mean, centred.T @ centred


class RankDeficientWarning(UserWarning):
    """Fewer windows than dimensions: the covariance is singular and the distance only ranks sets of equal size."""


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Wasserstein-2 distance of two Gaussians, symmetric.

    The trace of the root of the product is taken from the eigenvalues of ``A^(1/2) B A^(1/2)``, a symmetric matrix:
    two ``eigh``, no complex numbers.
    """
    return _frechet(a, _matrix_root(a.covariance), b)


@dataclass(frozen=True)
class Extrapolation:
    """Intercept of the line ``distance = slope / songs + value``; the error is the fit's, not that of the sample."""

    value: float
    standard_error: float
    r_squared: float


def fad_infinity(
    songs: Sequence[Float[Tensor, "w d"]],
    reference: Gaussian,
    generator: torch.Generator,
    *,
    sizes: int = 10,
    repeats: int = 4,
) -> Extrapolation:
    """Distance to ``reference`` extrapolated to infinitely many songs.

    Args:
        songs: windows of each song.
        reference: the reference set, held fixed.
        generator: draws the subsets.
        sizes: number of subset sizes, evenly spaced in 1/songs from half of the songs to all: below half the bias is
            not linear.
        repeats: subsets per size, drawn without replacement.
    """
    if len(songs) < MIN_SONGS:
        raise ValueError(f"fad_infinity needs at least {MIN_SONGS} songs to draw subsets from, got {len(songs)}")
    subset_distance = _subset_distance(songs, reference, generator)
    inverse, distances = [], []
    for u in torch.linspace(2.0, 1.0, sizes, dtype=torch.float64):
        count = round(len(songs) / float(u))
        for _ in range(repeats if count < len(songs) else 1):
            distances.append(subset_distance(count))
            inverse.append(1.0 / count)
    return _fit_line(torch.tensor(inverse, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64))


def half_distances(
    songs: Sequence[Float[Tensor, "w d"]], reference: Gaussian, generator: torch.Generator, *, repeats: int = 20
) -> list[float]:
    """Distances of random halves of the songs; their deviation is the standard error of the distance of all.

    Drawing with replacement would add the sampling bias a second time, and its interval misses the estimate. A half
    drawn without replacement deviates from the whole as much as the whole from the population (Shao and Wu 1989, the
    delete-half jackknife). Generators of one state draw the same halves of two sets of equal size, so that the
    differences of their halves give the error of their difference.

    Args:
        songs: windows of each song, 8 or more.
        reference: the reference set, held fixed.
        generator: draws the halves.
        repeats: number of halves.
    """
    if len(songs) < MIN_SONGS:
        raise ValueError(f"an error from halves needs at least {MIN_SONGS} songs, got {len(songs)}")
    subset_distance = _subset_distance(songs, reference, generator)
    return [subset_distance(len(songs) // 2) for _ in range(repeats)]


def song_distance(windows: Float[Tensor, "w d"], reference: Gaussian) -> float:
    """Fréchet distance of one song's windows to ``reference``.

    Its covariance is singular, as a song has fewer windows than an embedding has dimensions: the distance only ranks
    songs of equal length. The same number as :func:`frechet_distance`, from a matrix of windows by windows.

    Raises:
        ValueError: one window has no covariance.
    """
    mean, _ = _mean_and_scatter(windows)
    n = len(windows)
    if n < 2:
        raise ValueError("a song of one embedding window has no distance of its own: it needs at least 2")
    centred = windows.to(torch.float64) - mean
    # The product of the covariances has the eigenvalues of this one, and zeros.
    middle = centred @ reference.covariance @ centred.T / (n - 1)
    root_trace = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp(min=0).sqrt().sum()
    traces = centred.square().sum() / (n - 1) + reference.covariance.trace()
    return max(float((mean - reference.mean).square().sum() + traces - 2 * root_trace), 0.0)


def _subset_distance(
    songs: Sequence[Float[Tensor, "w d"]], reference: Gaussian, generator: torch.Generator
) -> Callable[[int], float]:
    """A function from a count to the distance of so many random songs, drawn without replacement."""
    root = _matrix_root(reference.covariance)

    def distance(count: int) -> float:
        chosen = torch.randperm(len(songs), generator=generator)[:count].tolist()
        return _frechet(reference, root, Gaussian.fit(torch.cat([songs[i] for i in chosen])), warn=False)

    return distance


def _frechet(a: Gaussian, root_a: Tensor, b: Gaussian, warn: bool = True) -> float:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"embeddings of {len(a.mean)} and {len(b.mean)} dimensions: the two sets come from different embeddings"
        )
    dimensions = len(a.mean)
    fewest = min((g.n for g in (a, b) if g.n is not None), default=dimensions + 1)
    if warn and fewest <= dimensions:
        message = f"{fewest} windows in {dimensions} dimensions: compare this distance only at equal numbers of windows"
        warnings.warn(message, RankDeficientWarning, stacklevel=3)
    middle = root_a @ b.covariance @ root_a
    root_trace = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * root_trace
    return max(float(distance), 0.0)


def _matrix_root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _fit_line(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Extrapolation:
    design = torch.stack([torch.ones_like(x), x], dim=1)
    inverse = torch.linalg.inv(design.T @ design)
    value, slope = inverse @ design.T @ y
    residual = y - design @ torch.stack([value, slope])
    total = (y - y.mean()).square().sum()
    error = (inverse[0, 0] * residual.square().sum() / (len(x) - 2)).sqrt()
    r_squared = 1.0 - float(residual.square().sum() / total) if total > 0 else 1.0
    return Extrapolation(float(value), float(error), r_squared)


@dataclass(frozen=True, kw_only=True)
class FrechetDistance(EmbedderMetric, SetMetric):
    """FAD between the windows of all songs and of all reference recordings, in float64.

    Attributes:
        statistics: an ``.npz`` of reference statistics; empty uses the reference recordings.
        seed: draws the song subsets of the extrapolation to infinitely many songs.
    """

    statistics: str = ""
    seed: int = 0
    higher_is_better = False

    @property
    def needs_reference(self) -> bool:
        return not self.statistics

    def distance(self, features: Sequence[Features], reference: Sequence[Features], same_songs: bool = False) -> Scores:
        """``fad``, its ``error`` and extrapolation where at least 8 songs allow them, and the windows of each side.

        Errors are standard errors over which songs there are; the extrapolation's adds that of its fit. Sets of the
        same songs share their sampling error, so between those nothing is extrapolated.
        """
        songs = [song["windows"] for song in features]
        target = self._reference(reference)
        generated = Gaussian.fit(torch.cat(songs))
        with warnings.catch_warnings():
            # The counts are reported with the distance; a sweep need not warn at every point.
            warnings.simplefilter("ignore", RankDeficientWarning)
            distance = frechet_distance(generated, target)
        result = {"fad": distance, "windows": sum(map(len, songs)), "dimensions": len(target.mean)}
        if target.n is not None:
            result["reference_windows"] = target.n
        if len(songs) >= MIN_SONGS and not same_songs:
            error = population_std(half_distances(songs, target, self._generator()))
            line = fad_infinity(songs, target, self._generator())
            result |= {"error": error, "infinity": line.value, "infinity_r2": line.r_squared}
            result["infinity_error"] = math.hypot(error, line.standard_error)
        return result

    def half_distances(self, features: Sequence[Features], reference: Sequence[Features]) -> list[float]:
        """Empty below 8 songs."""
        songs = [song["windows"] for song in features]
        return half_distances(songs, self._reference(reference), self._generator()) if len(songs) >= MIN_SONGS else []

    def write_statistics(self, reference: Sequence[Features], path: Path) -> None:
        """For :attr:`statistics` of another evaluation, and for fadtk."""
        if not self.statistics:
            windows = torch.cat([song["windows"] for song in reference])
            write_statistics(path, windows, self.extractor.name, len(reference), {"ear": self.extractor.fingerprint})

    def _reference(self, reference: Sequence[Features]) -> Gaussian:
        return _reference_gaussian(self.statistics, self.extractor.name, reference)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class SongFrechetDistance(EmbedderMetric, SongMetric):
    """FAD between one song's windows and the reference's: ranks songs of equal length, to find outliers.

    Attributes:
        embedder: its windows should be short compared with a song.
        statistics: an ``.npz`` of reference statistics; empty uses the reference recordings.
    """

    statistics: str = ""
    higher_is_better = False
    uses_prompt = False

    @property
    def needs_reference(self) -> bool:
        return not self.statistics

    def recordings(self, references: Sequence[Path]) -> Sequence[Path]:
        return references

    def fit(self, features: Sequence[Features]) -> None:
        self.state["reference"] = _reference_gaussian(self.statistics, self.extractor.name, features)

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        """``distance``, and the number of windows. Raises ``ValueError`` for a song of one window."""
        windows = features["windows"]
        return {"distance": song_distance(windows, self.state["reference"]), "windows": float(len(windows))}


def _reference_gaussian(statistics: str, name: str, reference: Sequence[Features]) -> Gaussian:
    """From the file ``statistics``; without one from the recordings' features."""
    if statistics:
        return read_statistics(statistics, name)
    return Gaussian.fit(torch.cat([song["windows"] for song in reference]))
