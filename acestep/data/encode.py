"""A waveform of any kind to latents: channels, rate and length brought to the autoencoder's, then tile by tile.

Everything takes audio in blocks, so that memory does not grow with the song; an ``Audio`` is one block.
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
"""Zero crossings of the resampling filter, torchaudio's own default."""
LARGEST_RATIO_TERM = 1000
"""Rates that share no useful divisor are resampled by the nearest fraction with terms like this: off by 1e-6."""


def fitted(audio: Audio, autoencoder: Autoencoder) -> Float[Tensor, "a s"]:
    """The samples of ``audio`` as ``fitted_blocks`` gives them, in one piece and in their own dtype."""
    blocks = list(fitted_blocks([audio.samples.float()], audio.sample_rate, autoencoder))
    empty = audio.samples.new_zeros(autoencoder.audio_channels, 0)
    return torch.cat([empty, *(block.to(empty) for block in blocks)], dim=1)


def fitted_blocks(
    blocks: Iterable[Float[Tensor, "a n"]], sample_rate: int, autoencoder: Autoencoder
) -> Iterator[Float[Tensor, "b m"]]:
    """A stream with the channels and at the rate that ``autoencoder`` wants, clamped to [-1, 1].

    Mono is duplicated, channels beyond the first two are dropped (upstream ``io_audio.py``).
    """
    channels = autoencoder.audio_channels
    # One channel is resampled once, and doubled afterwards.
    ours = (block[:channels] for block in blocks)
    for block in resampled(ours, sample_rate, autoencoder.sample_rate):
        yield (block.expand(channels, -1) if block.shape[0] == 1 else block).clamp(-1.0, 1.0)


def resampled(blocks: Iterable[Float[Tensor, "a n"]], source: int, target: int) -> Iterator[Float[Tensor, "a m"]]:
    """A stream at another rate: what torchaudio's windowed sinc makes of the whole, in pieces."""
    if source == target:
        yield from blocks
        return
    ratio = Fraction(target, source)
    if max(ratio.numerator, ratio.denominator) > LARGEST_RATIO_TERM:
        ratio = ratio.limit_denominator(LARGEST_RATIO_TERM)
    new, old = ratio.numerator, ratio.denominator
    # The filter reaches this far to either side; windows start at multiples of ``old``, where both rates meet.
    reach = math.ceil(FILTER_WIDTH * old / (0.99 * min(old, new))) + old
    margin = old * math.ceil(reach / old)
    core = old * max(1, 4 * margin // old, source // old)
    for window in windows(blocks, core + 2 * margin, margin):
        result = torchaudio.functional.resample(window.x, old, new, lowpass_filter_width=FILTER_WIDTH)
        yield window.core_at(result, ratio)


@dataclass(frozen=True, kw_only=True)
class TiledEncoder:
    """Encodes in overlapping tiles and keeps the middle of each, so that memory does not grow with the song.

    A song of at most ``chunk`` frames is encoded in one pass. Upstream's 30 s and 2 s (``vae_encode``) are 750 and 50
    frames. Samples after the last whole frame are dropped.
    """

    chunk: int = 750
    overlap: int = 50

    def __post_init__(self) -> None:
        """Refuse tiles without a middle."""
        if self.overlap < 0 or self.chunk <= 2 * self.overlap:
            raise ValueError(f"encoder.chunk={self.chunk}: need more than twice encoder.overlap={self.overlap}")

    def __call__(self, audio: Audio, autoencoder: Autoencoder) -> Posterior:
        """The posterior of the whole of ``audio``, as a batch of one."""
        return self.encode(self.tiles([fitted(audio, autoencoder)], autoencoder), autoencoder)

    def tiles(self, blocks: Iterable[Float[Tensor, "a n"]], autoencoder: Autoencoder) -> Iterator[Window]:
        """Fitted audio cut up for ``encode``. Knows rates and lengths of ``autoencoder``, but does not run it."""
        hop = autoencoder.hop
        return windows(_whole_frames(blocks, hop), self.chunk * hop, self.overlap * hop)

    @torch.no_grad()
    def encode(self, tiles: Iterable[Window], autoencoder: Autoencoder) -> Posterior:
        """The posterior of a song, as a batch of one. Raises ``ValueError`` where it lasts less than a frame."""
        weight = _weight(autoencoder)
        means, scales = [], []
        for tile in tiles:
            posterior = autoencoder.encode(tile.x[None].to(weight))
            means.append(tile.core(posterior.mean.transpose(1, 2)))
            scales.append(tile.core(posterior.scale.transpose(1, 2)))
        if not means:
            raise ValueError(f"too short: need at least one latent frame, {autoencoder.hop} samples")
        return Posterior(torch.cat(means, -1).transpose(1, 2), torch.cat(scales, -1).transpose(1, 2))


def _whole_frames(blocks: Iterable[Float[Tensor, "a n"]], hop: int) -> Iterator[Float[Tensor, "a n"]]:
    """The stream without what does not fill a frame at its end."""
    rest: Tensor | None = None
    for block in blocks:
        block = block if rest is None else torch.cat([rest, block], dim=1)
        whole = block.shape[1] // hop * hop
        if whole:
            yield block[:, :whole]
        rest = block[:, whole:]


def _weight(autoencoder: Autoencoder) -> Tensor:
    """A tensor that is where, and as precise as, the autoencoder wants its input."""
    if not isinstance(autoencoder, nn.Module):
        return torch.zeros(())
    return next(chain(autoencoder.parameters(), autoencoder.buffers()), torch.zeros(()))
