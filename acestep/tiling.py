"""Long songs through an autoencoder in overlapping tiles: bounded memory, no cross-fade.

A tile is a core and up to ``overlap`` more on either side that is discarded afterwards, so that nothing that is
kept was computed near a cut. Upstream: ``vae_encode_chunks.py`` and ``vae_decode_chunks.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.types import Autoencoder, Posterior

# Below this an overlap no longer covers what a frame depends on; upstream never halves further.
MIN_OVERLAP_FRAMES = 4


def tiled_encode(autoencoder: Autoencoder, audio: Float[Tensor, "b a s"], chunk: int, overlap: int) -> Posterior:
    """``autoencoder.encode`` in tiles of ``chunk`` samples that share ``overlap`` samples with either neighbour."""

    def moments(tile: Float[Tensor, "b a s"]) -> Float[Tensor, "b c2 t"]:
        posterior = autoencoder.encode(tile)
        return torch.cat([posterior.mean, posterior.scale], dim=-1).transpose(1, 2)

    mean, scale = _tiled(moments, audio, chunk, overlap).transpose(1, 2).chunk(2, dim=-1)
    return Posterior(mean=mean, scale=scale)


def tiled_decode(
    autoencoder: Autoencoder, latents: Float[Tensor, "b t c"], chunk: int, overlap: int
) -> Float[Tensor, "b a s"]:
    """``autoencoder.decode`` in tiles of ``chunk`` frames that share ``overlap`` frames with either neighbour.

    As upstream, an overlap that leaves nothing of ``chunk`` is halved until it fits, but not below four frames.
    """
    halved = overlap
    while chunk <= 2 * halved and halved > MIN_OVERLAP_FRAMES:
        halved //= 2
    overlap = max(halved, min(overlap, MIN_OVERLAP_FRAMES))
    return _tiled(lambda tile: autoencoder.decode(tile.transpose(1, 2)), latents.transpose(1, 2), chunk, overlap)


def _tiled(function: Callable[[Tensor], Tensor], x: Float[Tensor, "b i n"], chunk: int, overlap: int) -> Tensor:
    """``function`` over the last axis of ``x``, tile by tile; one pass if a single tile holds everything."""
    total, stride = x.shape[-1], chunk - 2 * overlap
    if total <= chunk:
        return function(x)
    if stride < 1:
        raise ValueError(f"chunk={chunk}: need more than two overlaps of {overlap}; enlarge the chunk")
    cores, ratio = [], None
    for start in range(0, total, stride):
        stop = min(start + stride, total)
        first, last = max(0, start - overlap), min(total, stop + overlap)
        tile = function(x[..., first:last])
        ratio = tile.shape[-1] / (last - first) if ratio is None else ratio
        lead, tail = round((start - first) * ratio), round((last - stop) * ratio)
        cores.append(tile[..., lead : tile.shape[-1] - tail])
    return torch.cat(cores, dim=-1)
