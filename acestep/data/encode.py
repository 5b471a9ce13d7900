"""A waveform of any kind to latents: channels, rate and length brought to the autoencoder's, then tile by tile."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn

from acestep.audio import Audio
from acestep.tiling import tiled_encode
from acestep.types import Autoencoder, Posterior


def fitted(audio: Audio, autoencoder: Autoencoder) -> Float[Tensor, "a s"]:
    """The samples of ``audio`` with the channels and at the rate that ``autoencoder`` wants, clamped to [-1, 1].

    Their dtype stays. Mono is duplicated, channels beyond the first two are dropped (upstream ``io_audio.py``).
    """
    channels = autoencoder.audio_channels
    samples = audio.samples.float()
    samples = samples.expand(channels, -1) if samples.shape[0] == 1 else samples[:channels]
    if audio.sample_rate != autoencoder.sample_rate:
        samples = torchaudio.functional.resample(samples, audio.sample_rate, autoencoder.sample_rate)
    return samples.clamp(-1.0, 1.0).to(audio.samples.dtype)


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

    @torch.no_grad()
    def __call__(self, audio: Audio, autoencoder: Autoencoder) -> Posterior:
        """The posterior of the whole of ``audio``, as a batch of one."""
        samples, hop = fitted(audio, autoencoder).to(_weight(autoencoder)), autoencoder.hop
        frames = samples.shape[-1] // hop
        if frames == 0:
            raise ValueError(f"{audio.seconds:.3f} s of audio: need at least one latent frame of {hop} samples")
        return tiled_encode(autoencoder, samples[None, :, : frames * hop], self.chunk * hop, self.overlap * hop)


def _weight(autoencoder: Autoencoder) -> Tensor:
    """A tensor that is where, and as precise as, the autoencoder wants its input."""
    if not isinstance(autoencoder, nn.Module):
        return torch.zeros(())
    return next(chain(autoencoder.parameters(), autoencoder.buffers()), torch.zeros(()))
