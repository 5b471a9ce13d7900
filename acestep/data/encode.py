"""From a waveform of any kind to latents: channels, sample rate and length are converted, then tiles are encoded.

Audio comes in blocks, so that memory does not grow with the song.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn

from acestep.audio.audio import Audio
from acestep.audio.tiling import Window, windows
from acestep.types import Autoencoder, Posterior

FILTER_WIDTH = 6
"""Zero crossings of the resampling filter, torchaudio's default."""
MAX_RATIO_TERM = 1000
"""Largest numerator and denominator of a resampling ratio; other ratios are approximated, to within 1e-6."""


def convert_audio(audio: Audio, autoencoder: Autoencoder) -> Float[Tensor, "a s"]:
    """The whole of ``audio`` converted by ``convert_blocks``, in its own dtype."""
    blocks = list(convert_blocks([audio.samples.float()], audio.sample_rate, autoencoder))
    empty = audio.samples.new_zeros(autoencoder.audio_channels, 0)
    return torch.cat([empty, *(block.to(empty) for block in blocks)], dim=1)


def convert_blocks(
    blocks: Iterable[Float[Tensor, "a n"]], sample_rate: int, autoencoder: Autoencoder
) -> Iterator[Float[Tensor, "b m"]]:
    """Convert a waveform to the channels and sample rate of ``autoencoder``, clamped to [-1, 1].

    Mono is duplicated, channels beyond the first two are dropped (upstream ``io_audio.py``).
    """
    channels = autoencoder.audio_channels
    kept = (block[:channels] for block in blocks)
    for block in resample_blocks(kept, sample_rate, autoencoder.sample_rate):
        yield (block.expand(channels, -1) if block.shape[0] == 1 else block).clamp(-1.0, 1.0)


def resample_blocks(blocks: Iterable[Float[Tensor, "a n"]], source: int, target: int) -> Iterator[Float[Tensor, "a m"]]:
    """Resample from ``source`` to ``target`` Hz: torchaudio's windowed sinc filter of the whole signal, in pieces."""
    if source == target:
        yield from blocks
        return
    ratio = Fraction(target, source)
    if max(ratio.numerator, ratio.denominator) > MAX_RATIO_TERM:
        ratio = ratio.limit_denominator(MAX_RATIO_TERM)
    new, old = ratio.numerator, ratio.denominator
    # Half the filter's length. Windows start at multiples of ``old``, where samples of both rates coincide.
    reach = math.ceil(FILTER_WIDTH * old / (0.99 * min(old, new))) + old
    margin = old * math.ceil(reach / old)
    core = old * max(1, 4 * margin // old, source // old)
    for window in windows(blocks, core + 2 * margin, margin):
        result = torchaudio.functional.resample(window.x, old, new, lowpass_filter_width=FILTER_WIDTH)
        yield window.core(result, ratio)


@dataclass(frozen=True, kw_only=True)
class TiledEncoder:
    """Encodes in overlapping tiles and keeps the core of each, so that memory does not grow with the song.

    A song of at most ``chunk`` frames is encoded in one pass. Samples after the last whole frame are dropped.

    Args:
        chunk: length of a tile in latent frames; 750 are upstream's 30 s (``vae_encode``).
        overlap: margin on either side of a tile in frames; 50 are upstream's 2 s.
    """

    chunk: int = 750
    overlap: int = 50

    def __post_init__(self) -> None:
        if self.overlap < 0 or self.chunk <= 2 * self.overlap:
            raise ValueError(f"encoder.chunk={self.chunk}: need more than twice encoder.overlap={self.overlap}")

    def __call__(self, audio: Audio, autoencoder: Autoencoder) -> Posterior:
        """The posterior of ``audio``, converted first, as a batch of one."""
        return self.encode(self.tiles([convert_audio(audio, autoencoder)], autoencoder), autoencoder)

    def tiles(self, blocks: Iterable[Float[Tensor, "*b a n"]], autoencoder: Autoencoder) -> Iterator[Window]:
        """Cut converted audio into tiles for ``encode``; reads the rates of ``autoencoder``, but does not run it."""
        hop = autoencoder.hop
        return windows(_whole_frames(blocks, hop), self.chunk * hop, self.overlap * hop)

    @torch.no_grad()
    def encode(self, tiles: Iterable[Window], autoencoder: Autoencoder) -> Posterior:
        """Encode the tiles of a batch of songs of equal length; tiles without a batch axis are a batch of one.

        Raises:
            ValueError: the songs are shorter than one latent frame.
        """
        like, rate = _first_tensor(autoencoder), Fraction(1, autoencoder.hop)
        means, scales = [], []
        for tile in tiles:
            posterior = autoencoder.encode(tile.x.reshape(-1, *tile.x.shape[-2:]).to(like))
            means.append(tile.core(posterior.mean.transpose(1, 2), rate))
            scales.append(tile.core(posterior.scale.transpose(1, 2), rate))
        if not means:
            raise ValueError(f"too short: need at least one latent frame, {autoencoder.hop} samples")
        return Posterior(torch.cat(means, -1).transpose(1, 2), torch.cat(scales, -1).transpose(1, 2))


def _whole_frames(blocks: Iterable[Float[Tensor, "*b n"]], hop: int) -> Iterator[Float[Tensor, "*b n"]]:
    """The signal without the samples at its end that do not fill a frame."""
    rest: Tensor | None = None
    for block in blocks:
        block = block if rest is None else torch.cat([rest, block], dim=-1)
        whole = block.shape[-1] // hop * hop
        if whole:
            yield block[..., :whole]
        rest = block[..., whole:]


def _first_tensor(autoencoder: Autoencoder) -> Tensor:
    """A tensor with the device and dtype that the autoencoder takes."""
    if not isinstance(autoencoder, nn.Module):
        return torch.zeros(())
    return next(chain(autoencoder.parameters(), autoencoder.buffers()), torch.zeros(()))
