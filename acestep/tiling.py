"""Long songs through an autoencoder in overlapping tiles: bounded memory, no cross-fade.

A tile is a core and up to ``overlap`` more on either side that is discarded afterwards, so that nothing that is
kept was computed near a cut. Upstream: ``vae_encode_chunks.py`` and ``vae_decode_chunks.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.types import Autoencoder, PlacedDecoder, Posterior

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
    audio, first, hop = None, 0, 0
    for window in windows([latents.transpose(1, 2)], chunk, overlap):
        core = window.core(_decode_at(autoencoder, window.x.transpose(1, 2), first - window.lead))
        frames = window.x.shape[-1] - window.lead - window.tail
        if audio is None:  # filled in place, so that a long song is held once
            hop = core.shape[-1] // frames
            audio = core.new_empty(*core.shape[:-1], latents.shape[1] * hop)
        audio[..., first * hop : (first + frames) * hop] = core
        first += frames
    assert audio is not None
    return audio


def _decode_at(autoencoder: Autoencoder, latents: Tensor, first: int) -> Tensor:
    return (
        autoencoder.decode_at(latents, first) if isinstance(autoencoder, PlacedDecoder) else autoencoder.decode(latents)
    )


def _tiled(function: Callable[[Tensor], Tensor], x: Float[Tensor, "b i n"], chunk: int, overlap: int) -> Tensor:
    """``function`` over the last axis of ``x``, tile by tile; one pass if a single tile holds everything."""
    return torch.cat([window.core(function(window.x)) for window in windows([x], chunk, overlap)], dim=-1)


@dataclass(frozen=True)
class Window:
    """A core of a stream and what stands on either side of it: ``lead`` before and ``tail`` behind, to be discarded."""

    x: Float[Tensor, "*b n"]
    lead: int
    tail: int

    def core(self, result: Float[Tensor, "*b m"]) -> Float[Tensor, "*b k"]:
        """The part of ``result``, made of ``x`` at any rate, that belongs to the core."""
        ratio = result.shape[-1] / self.x.shape[-1]
        return result[..., round(self.lead * ratio) : result.shape[-1] - round(self.tail * ratio)]


def windows(blocks: Iterable[Float[Tensor, "*b n"]], chunk: int, overlap: int) -> Iterator[Window]:
    """The windows of a stream that comes in ``blocks`` of any length along the last axis; one if ``chunk`` holds all.

    What is held in memory is a window and a block.
    """
    stride = chunk - 2 * overlap
    held: list[Tensor] = []
    lead = 0
    for block in blocks:
        held.append(block)
        have = sum(part.shape[-1] for part in held)
        # The first window waits for more than a chunk, since a stream no longer than that is one window.
        while have > (chunk if lead == 0 else lead + stride + overlap):
            if stride < 1:
                raise ValueError(f"chunk={chunk}: need more than two overlaps of {overlap}; enlarge the chunk")
            x = torch.cat(held, dim=-1)
            yield Window(x[..., : lead + stride + overlap], lead, overlap)
            following = min(lead + stride, overlap)
            held = [x[..., lead + stride - following :]]
            lead, have = following, held[0].shape[-1]
    if held:
        yield from _last_windows(torch.cat(held, dim=-1), lead, stride, overlap, chunk)


def _last_windows(x: Tensor, lead: int, stride: int, overlap: int, chunk: int) -> Iterator[Window]:
    total = x.shape[-1]
    if lead == 0 and total <= chunk:
        yield Window(x, 0, 0)
        return
    for start in range(lead, total, stride):
        stop = min(start + stride, total)
        first, last = max(0, start - overlap), min(total, stop + overlap)
        yield Window(x[..., first:last], start - first, last - stop)
