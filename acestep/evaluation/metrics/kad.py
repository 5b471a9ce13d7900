"""Kernel distances: unbiased squared maximum mean discrepancy, usable from tens of songs and free of matrix roots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.evaluation.embedders.base import Features
from acestep.evaluation.metrics.base import EmbedderMetric, Scores, SetMetric

Kernel = Callable[[Float[Tensor, "m d"], Float[Tensor, "n d"]], Float[Tensor, "m n"]]


def kad(reference: Float[Tensor, "m d"], generated: Float[Tensor, "n d"], bandwidth: float, block: int = 2048) -> float:
    """Kernel audio distance, times 100 (Chung et al. 2025). Unbiased, so values below 0 occur.

    Args:
        reference: windows of the reference set.
        generated: windows of the other set.
        bandwidth: the kernel's sigma: :func:`median_bandwidth` of the *reference*, so that two systems are compared
            with the same kernel.
        block: rows per block; memory is ``block`` squared.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * bandwidth**2))

    return 100.0 * squared_mmd(reference, generated, kernel, block)


def kid(reference: Float[Tensor, "m d"], generated: Float[Tensor, "n d"], degree: int = 3, block: int = 2048) -> float:
    """Kernel inception distance on all rows: unbiased MMD² with the kernel ``(x·y / d + 1) ** degree``."""
    return squared_mmd(reference, generated, lambda a, b: (a @ b.T / a.shape[1] + 1.0) ** degree, block)


def median_bandwidth(windows: Float[Tensor, "m d"], most: int = 4000) -> float:
    """Median Euclidean distance between pairs of windows; from ``most`` evenly spaced rows where there are more."""
    stride = -(-len(windows) // most)
    return float(torch.pdist(windows[::stride].to(torch.float64)).median())


def squared_mmd(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"], kernel: Kernel, block: int = 2048) -> float:
    """Unbiased squared MMD: mean kernel within ``x``, plus within ``y``, less twice across; the diagonal left out."""
    if min(len(x), len(y)) < 2:
        raise ValueError(f"kernel distances need at least 2 windows on each side, got {len(x)} and {len(y)}")
    x, y = x.to(torch.float64), y.to(torch.float64)
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise ValueError("an embedding window holds NaN or infinity: exclude the song that produced it")

    def total(a: Tensor, b: Tensor) -> float:
        return sum(float(kernel(p, q).sum()) for p in a.split(block) for q in b.split(block))

    def within(a: Tensor) -> float:
        blocks, sums = a.split(block), 0.0
        for index, p in enumerate(blocks):
            diagonal = kernel(p, p)
            sums += float(diagonal.sum() - diagonal.diagonal().sum())
            sums += 2.0 * sum(float(kernel(p, q).sum()) for q in blocks[index + 1 :])
        return sums / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2.0 * total(x, y) / (len(x) * len(y))


@dataclass(frozen=True, kw_only=True)
class KernelDistance(EmbedderMetric, SetMetric):
    """KAD between the windows of all songs and of all reference recordings, usable from tens of songs.

    The kernel's bandwidth is the median distance between the reference's windows.
    """

    higher_is_better = False

    def distance(self, features: Sequence[Features], reference: Sequence[Features], same_songs: bool = False) -> Scores:
        """``kad`` and the ``bandwidth`` of its kernel."""
        target = torch.cat([song["windows"] for song in reference])
        bandwidth = median_bandwidth(target)
        return {
            "kad": kad(target, torch.cat([song["windows"] for song in features]), bandwidth),
            "bandwidth": bandwidth,
        }
