"""Means and covariances of embedding windows: streamed, merged exactly, kept in files that other tools read.

All sums are float64: with float32 or half-precision sums the Fréchet distance loses its fourth digit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acestep.files import atomic


@dataclass(frozen=True)
class Gaussian:
    """A mean and a covariance. ``n`` is the number of windows behind them, ``None`` where the source did not say."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]
    n: int | None = None

    def __post_init__(self) -> None:
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.covariance).all()):
            raise ValueError("embedding statistics hold NaN or infinity: exclude the songs that produced them")


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (sum of outer products of deviations) of the windows seen so far."""

    n: int
    mean: Float[Tensor, " d"]
    scatter: Float[Tensor, "d d"]

    @classmethod
    def of(cls, windows: Float[Tensor, "w d"]) -> Moments:
        """Moments of some windows. Raises ``ValueError`` on an empty set or a value that is not finite."""
        if windows.ndim != 2 or len(windows) == 0:
            raise ValueError(f"embedding windows of shape {tuple(windows.shape)}: need (windows >= 1, dimensions)")
        windows = windows.to(torch.float64)
        if not torch.isfinite(windows).all():
            raise ValueError("an embedding window holds NaN or infinity: exclude the song that produced it")
        mean = windows.mean(0)
        centred = windows - mean
        return cls(len(windows), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together, exact to rounding, in any order of merging (Chan et al. 1979)."""
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        scatter = self.scatter + other.scatter + torch.outer(delta, delta) * (self.n * other.n / n)
        return Moments(n, mean, scatter)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance (divided by n - 1)."""
        if self.n < 2:
            raise ValueError("one embedding window has no covariance: need at least 2 windows in all")
        return Gaussian(self.mean, self.scatter / (self.n - 1), self.n)


def write_statistics(
    path: str | Path, moments: Moments, name: str, songs: int, settings: Mapping[str, Any] | None = None
) -> None:
    """Reference statistics as ``.npz``: fadtk's keys (``NAME.mu``, ``NAME.cov``) beside all that merging needs.

    Args:
        path: the file, replaced atomically.
        moments: what to keep.
        name: the embedding's name, as fadtk would call it.
        songs: number of files behind the windows.
        settings: what produced the embeddings (weights hash, sample rate, window, hop...), kept as JSON.
    """
    gaussian = moments.gaussian()
    mean, covariance = gaussian.mean.numpy(), gaussian.covariance.numpy()
    values = {
        f"{name}.mu": mean,
        f"{name}.cov": covariance,
        "mu": mean,
        "cov": covariance,
        "scatter": moments.scatter.numpy(),
        "n_windows": np.int64(moments.n),
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
                return Gaussian(_double(file[mean]), _double(file[covariance]), n)
        raise ValueError(f"{path}: no statistics of {name}; the file holds {', '.join(sorted(file.files))}")


def read_moments(path: str | Path, name: str) -> Moments:
    """What :func:`write_statistics` kept, to merge with more windows."""
    with np.load(path, allow_pickle=False) as file:
        if f"{name}.mu" not in file or "scatter" not in file:
            raise ValueError(
                f"{path}: holds no scatter and count of {name}; only statistics written here can be merged"
            )
        return Moments(int(file["n_windows"]), _double(file[f"{name}.mu"]), _double(file["scatter"]))


def _double(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float64))
