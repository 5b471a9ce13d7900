"""Fréchet audio distance between sets of embedding windows, and its extrapolation to infinitely many songs.

The distance of N sampled songs to the truth is biased upwards by about tr(covariance) / N and more; the bias falls as
1/N, so a line through distances at several N, drawn *without* replacement and by whole songs, meets the axis at the
unbiased value (FAD-infinity; Gui et al., ICASSP 2024). Drawing with replacement extrapolates to the sample's own
distance, and drawing windows of a song as if they were independent leaves most of the bias in.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.evaluation.metrics.gaussian import Gaussian, Moments


class RankDeficientWarning(UserWarning):
    """Fewer windows than dimensions: the covariance is singular and the distance only ranks sets of equal size."""


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Wasserstein-2 distance of two Gaussians, symmetric.

    The trace of the root of the product is taken as the eigenvalues of ``A^(1/2) B A^(1/2)``, a symmetric matrix: two
    ``eigh``, never a complex number.
    """
    return _distance(a, _root(a.covariance), b)


@dataclass(frozen=True)
class Extrapolation:
    """The line ``distance = slope / songs + value``; the error is the fit's, not that of having these songs."""

    value: float
    standard_error: float
    r_squared: float
    slope: float


def fad_infinity(
    songs: Sequence[Float[Tensor, "w d"]],
    reference: Gaussian,
    generator: torch.Generator,
    *,
    sizes: int = 10,
    repeats: int = 4,
) -> Extrapolation:
    """Distance to ``reference`` that infinitely many songs like these would have.

    Args:
        songs: windows of each song.
        reference: the set to compare with, held fixed.
        generator: draws the subsets.
        sizes: how many subset sizes, evenly spaced in 1/songs from half of the songs to all: with fewer the bias bends.
        repeats: subsets per size, drawn without replacement.
    """
    if len(songs) < 8:
        raise ValueError(f"fad_infinity needs at least 8 songs to draw subsets from, got {len(songs)}")
    root = _root(reference.covariance)
    inverse, distances = [], []
    for u in torch.linspace(2.0, 1.0, sizes, dtype=torch.float64):
        count = round(len(songs) / float(u))
        for _ in range(repeats if count < len(songs) else 1):
            chosen = torch.randperm(len(songs), generator=generator)[:count]
            subset = Moments.of(torch.cat([songs[i] for i in chosen.tolist()]))
            distances.append(_distance(reference, root, subset.gaussian(), warn=False))
            inverse.append(1.0 / count)
    return _line(torch.tensor(inverse, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64))


def half_distances(
    songs: Sequence[Float[Tensor, "w d"]], reference: Gaussian, generator: torch.Generator, *, repeats: int = 20
) -> list[float]:
    """Distances of random halves of the songs; their spread is the standard error of the distance of all.

    Drawing with replacement would add the sampling bias a second time, and its interval misses the estimate. A half
    drawn without replacement deviates from the whole as much as the whole from the population (Shao and Wu 1989, the
    jackknife that deletes half). Two sets of equally many songs are drawn alike by generators of one state, so that
    the differences of their halves give the error of their difference.

    Args:
        songs: windows of each song, 8 or more.
        reference: the set to compare with, held fixed.
        generator: draws the halves.
        repeats: how many.
    """
    if len(songs) < 8:
        raise ValueError(f"an error from halves needs at least 8 songs, got {len(songs)}")
    root = _root(reference.covariance)
    distances = []
    for _ in range(repeats):
        chosen = torch.randperm(len(songs), generator=generator)[: len(songs) // 2].tolist()
        half = Moments.of(torch.cat([songs[i] for i in chosen]))
        distances.append(_distance(reference, root, half.gaussian(), warn=False))
    return distances


def song_distance(windows: Float[Tensor, "w d"], reference: Gaussian) -> float:
    """Fréchet distance of one song's windows to ``reference``.

    Singular, as a song has fewer windows than an embedding has dimensions: it ranks songs of equal length, and finds
    those to listen to. The same number as :func:`frechet_distance`, from a matrix of windows by windows.

    Raises:
        ValueError: one window has no covariance.
    """
    song = Moments.of(windows)
    if song.n < 2:
        raise ValueError("a song of one embedding window has no distance of its own: it needs at least 2")
    centred = windows.to(torch.float64) - song.mean
    # The product of the covariances has the eigenvalues of this one, and zeros.
    middle = centred @ reference.covariance @ centred.T / (song.n - 1)
    shared = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp(min=0).sqrt().sum()
    traces = centred.square().sum() / (song.n - 1) + reference.covariance.trace()
    return max(float((song.mean - reference.mean).square().sum() + traces - 2 * shared), 0.0)


def sample_bias(covariance: Float[Tensor, "d d"], n: int) -> float:
    """Expected distance of ``n`` independent windows to the exact distribution they come from, to second order."""
    values = torch.linalg.eigvalsh(covariance.to(torch.float64)).clamp(min=1e-300)
    pairs = torch.outer(values, values) / (2 * (values[:, None] + values[None]))
    return float(values.sum() / n + (pairs.sum() + pairs.diagonal().sum()) / (n - 1))


def _distance(a: Gaussian, root_a: Tensor, b: Gaussian, warn: bool = True) -> float:
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
    shared = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * shared
    return max(float(distance), 0.0)


def _root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _line(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Extrapolation:
    design = torch.stack([torch.ones_like(x), x], dim=1)
    inverse = torch.linalg.inv(design.T @ design)
    value, slope = inverse @ design.T @ y
    residual = y - design @ torch.stack([value, slope])
    spread = (y - y.mean()).square().sum()
    error = (inverse[0, 0] * residual.square().sum() / (len(x) - 2)).sqrt()
    r_squared = 1.0 - float(residual.square().sum() / spread) if spread > 0 else 1.0
    return Extrapolation(float(value), float(error), r_squared, float(slope))
