"""Long songs in overlapping windows: bounded memory, no cross-fade.

A window is a core and more on either side that is discarded afterwards, so that nothing that is kept was computed
near a cut. Around a whole autoencoder it is a tile (upstream ``vae_encode_chunks.py``, ``vae_decode_chunks.py``);
around one of its stages, which reaches far less, it is small enough to stay in a processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.types import Autoencoder, PlacedDecoder, Posterior

# Below this an overlap no longer covers what a frame depends on; upstream never halves further.
MIN_OVERLAP_FRAMES = 4

CACHED, RESIDENT = 2**20, 2**24
"""Numbers in a stage's widest tensor: what a processor's cache holds, and what keeps an accelerator busy."""
LEAST_CORE = 256
"""Positions of a window beside which its margins, and what a stage does once a window, are little."""


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

    def core_at(self, result: Float[Tensor, "*b m"], rate: Fraction) -> Float[Tensor, "*b k"]:
        """The core's part of ``result``, made of ``x`` at ``rate`` from its first value on.

        A core that ends inside the stream ends at a multiple of the rate's denominator; the last takes what is left.
        """
        inside = self.x.shape[-1] - self.tail
        end = inside * rate.numerator // rate.denominator if self.tail else result.shape[-1]
        return result[..., self.lead * rate.numerator // rate.denominator : end]


@dataclass(frozen=True)
class Stage:
    """A part of a network that works along time, and what a window of it must be like.

    Args:
        function: the part, (B, C, N) to (B, D, about N x rate).
        rate: results per position; the first result stands at the first position.
        reach: positions on either side of a result that it depends on.
        width: numbers that the part's widest tensor has per position, for one song.
    """

    function: Callable[[Float[Tensor, "b c n"]], Float[Tensor, "b d m"]]
    rate: Fraction
    reach: int
    width: int

    def along(self, blocks: Iterable[Float[Tensor, "b c n"]], most: int) -> Iterator[Float[Tensor, "b d m"]]:
        """Results of a stream, none of them computed near a cut, where a window's widest tensor has ``most`` numbers.

        More, where so few leave a window little but margins; and what is at work beside it are a few tensors like it.
        """
        step = self.rate.denominator
        overlap = step * math.ceil(self.reach / step)
        core = step * math.ceil(max(most // self.width, LEAST_CORE) / step)
        for window in windows(blocks, core + 2 * overlap, overlap):
            yield window.core_at(self.function(window.x), self.rate)
            del window


def through(stages: Iterable[Stage], x: Float[Tensor, "b c n"]) -> Float[Tensor, "b d m"]:
    """``x`` through ``stages``, one after another.

    Where nothing is kept for gradients they pass on windows, as one needs them from another: the same numbers but for
    rounding, and at any length the same memory beside ``x`` and the result.
    """
    if torch.is_grad_enabled():
        for stage in stages:
            x = stage.function(x)
        return x
    blocks: Iterable[Tensor] = [x]
    for stage in stages:
        blocks = stage.along(blocks, (CACHED if x.device.type == "cpu" else RESIDENT) // max(1, x.shape[0]))
    return _joined(list(blocks))


def windows(blocks: Iterable[Float[Tensor, "*b n"]], chunk: int, overlap: int) -> Iterator[Window]:
    """The windows of a stream that comes in ``blocks`` of any length along the last axis; one if ``chunk`` holds all.

    What is held in memory is a window and a block.
    """
    stride = chunk - 2 * overlap
    held: list[Tensor] = []
    lead, enough = 0, chunk  # for the first window, since a stream no longer than a chunk is one
    for block in blocks:
        held.append(block)
        del block  # here and below: nothing is kept alive while others work
        if sum(part.shape[-1] for part in held) <= enough:
            continue
        if stride < 1:
            raise ValueError(f"chunk={chunk}: need more than two overlaps of {overlap}; enlarge the chunk")
        x = _joined(held)
        held.clear()
        while x.shape[-1] > enough:
            yield Window(x[..., : lead + stride + overlap], lead, overlap)
            following = min(lead + stride, overlap)
            x = x[..., lead + stride - following :]
            lead, enough = following, following + stride + overlap
        held.append(x.clone())
        del x
    if held:
        yield from _last_windows(_joined(held), lead, stride, overlap, chunk)


def _last_windows(x: Tensor, lead: int, stride: int, overlap: int, chunk: int) -> Iterator[Window]:
    total = x.shape[-1]
    if lead == 0 and total <= chunk:
        yield Window(x, 0, 0)
        return
    for start in range(lead, total, stride):
        stop = min(start + stride, total)
        first, last = max(0, start - overlap), min(total, stop + overlap)
        yield Window(x[..., first:last], start - first, last - stop)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
