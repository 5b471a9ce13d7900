"""Processing in overlapping windows with bounded memory and without cross-fade.

A window is a core with margins on both sides. Results in the margins are discarded, so that no kept value depends on
where the signal was cut. Windows are used around the whole autoencoder (upstream ``vae_encode_chunks.py``,
``vae_decode_chunks.py``) and around single stages of it, whose smaller receptive field allows windows that fit a
processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.types import Autoencoder, PositionalDecoder

# A smaller overlap no longer covers a frame's receptive field; upstream does not halve further either.
MIN_OVERLAP_FRAMES = 4

CPU_WINDOW_ELEMENTS, GPU_WINDOW_ELEMENTS = 2**20, 2**24
"""Elements of a stage's widest tensor in one window: fits a processor's cache; keeps an accelerator busy."""
MIN_CORE = 256
"""Positions of a window's core, so that margins and the overhead per window cost little."""


def tiled_decode(
    autoencoder: Autoencoder, latents: Float[Tensor, "b t c"], chunk: int, overlap: int
) -> Float[Tensor, "b a s"]:
    """``autoencoder.decode`` in tiles of ``chunk`` frames that overlap each neighbour by ``overlap`` frames.

    As upstream, an overlap too large for ``chunk`` is halved until it fits, but not below four frames.

    Raises:
        ValueError: ``chunk`` is not longer than two overlaps of four frames.
    """
    halved = overlap
    while chunk <= 2 * halved and halved > MIN_OVERLAP_FRAMES:
        halved //= 2
    overlap = max(halved, min(overlap, MIN_OVERLAP_FRAMES))
    audio, first, hop = None, 0, autoencoder.hop
    for window in windows([latents.transpose(1, 2)], chunk, overlap):
        core = window.core(_decode_at(autoencoder, window.x.transpose(1, 2), first - window.lead), Fraction(hop))
        if audio is None:  # allocated once and filled, so that a long song is in memory only once
            audio = core.new_empty(*core.shape[:-1], latents.shape[1] * hop)
        audio[..., first * hop : first * hop + core.shape[-1]] = core
        first += core.shape[-1] // hop
    assert audio is not None
    return audio


def _decode_at(autoencoder: Autoencoder, latents: Tensor, first: int) -> Tensor:
    if isinstance(autoencoder, PositionalDecoder):
        return autoencoder.decode_at(latents, first)
    return autoencoder.decode(latents)


@dataclass(frozen=True)
class Window:
    """A piece of a signal: the first ``lead`` and last ``tail`` values of ``x`` are margins, the others the core."""

    x: Float[Tensor, "*b n"]
    lead: int
    tail: int

    def core(self, result: Float[Tensor, "*b m"], rate: Fraction) -> Float[Tensor, "*b k"]:
        """The core's part of ``result``, which has ``rate`` values per value of ``x``, aligned at the first.

        The core must end at a multiple of the rate's denominator, except in the last window, which has no tail.
        """
        inside = self.x.shape[-1] - self.tail
        end = inside * rate.numerator // rate.denominator if self.tail else result.shape[-1]
        return result[..., self.lead * rate.numerator // rate.denominator : end]


@dataclass(frozen=True)
class Stage:
    """A part of a network that can run on windows along time.

    Args:
        function: the part, (B, C, N) to (B, D, about N x rate).
        rate: output positions per input position; the first ones are aligned.
        reach: input positions on either side that an output depends on.
        width: elements of the part's widest tensor per input position, for one song.
    """

    function: Callable[[Float[Tensor, "b c n"]], Float[Tensor, "b d m"]]
    rate: Fraction
    reach: int
    width: int

    def stream(self, blocks: Iterable[Float[Tensor, "b c n"]], max_elements: int) -> Iterator[Float[Tensor, "b d m"]]:
        """Output of a signal that comes in blocks, computed on windows.

        A window's widest tensor has about ``max_elements`` elements, more where its core would be below ``MIN_CORE``.
        """
        step = self.rate.denominator
        overlap = step * math.ceil(self.reach / step)
        core = step * math.ceil(max(max_elements // self.width, MIN_CORE) / step)
        for window in windows(blocks, core + 2 * overlap, overlap):
            yield window.core(self.function(window.x), self.rate)
            del window


def run_stages(stages: Iterable[Stage], x: Float[Tensor, "b c n"]) -> Float[Tensor, "b d m"]:
    """Apply ``stages`` to ``x`` one after another.

    Without gradients they run as generators on windows: equal up to rounding, and beside ``x`` and the result the
    memory does not depend on the length.
    """
    if torch.is_grad_enabled():
        for stage in stages:
            x = stage.function(x)
        return x
    max_elements = (CPU_WINDOW_ELEMENTS if x.device.type == "cpu" else GPU_WINDOW_ELEMENTS) // max(1, x.shape[0])
    blocks: Iterable[Tensor] = [x]
    for stage in stages:
        blocks = stage.stream(blocks, max_elements)
    return _concatenated(list(blocks))


def windows(blocks: Iterable[Float[Tensor, "*b n"]], chunk: int, overlap: int) -> Iterator[Window]:
    """Cut a signal that comes in ``blocks`` of any length along the last axis into windows of ``chunk`` values.

    A signal of at most ``chunk`` values is one window. Memory holds one window and one block.

    Raises:
        ValueError: a longer signal, and ``chunk`` is not longer than two overlaps.
    """
    stride = chunk - 2 * overlap
    held: list[Tensor] = []
    lead, enough = 0, chunk  # ``chunk`` for the first window: a signal no longer than that is not cut
    for block in blocks:
        held.append(block)
        del block  # here and below: release memory before the consumer runs
        if sum(part.shape[-1] for part in held) <= enough:
            continue
        if stride < 1:
            raise ValueError(f"chunk={chunk}: need more than two overlaps of {overlap}; enlarge the chunk")
        x = _concatenated(held)
        held.clear()
        while x.shape[-1] > enough:
            yield Window(x[..., : lead + stride + overlap], lead, overlap)
            following = min(lead + stride, overlap)
            x = x[..., lead + stride - following :]
            lead, enough = following, following + stride + overlap
        held.append(x.clone())
        del x
    if held:
        yield from _last_windows(_concatenated(held), lead, stride, overlap, chunk)


def _last_windows(x: Tensor, lead: int, stride: int, overlap: int, chunk: int) -> Iterator[Window]:
    total = x.shape[-1]
    if lead == 0 and total <= chunk:
        yield Window(x, 0, 0)
        return
    for start in range(lead, total, stride):
        stop = min(start + stride, total)
        first, last = max(0, start - overlap), min(total, stop + overlap)
        yield Window(x[..., first:last], start - first, last - stop)


def _concatenated(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
