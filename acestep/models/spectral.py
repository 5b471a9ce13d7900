"""The micro world's autoencoder: semitone amplitudes and four noise bands, projected to 64 channels at 25 Hz.

A linear projection (PCA) of a log spectrum instead of a learned codec. It is fitted in seconds, and its decoder, a
bank of oscillators on the equal-tempered grid plus filtered noise, reproduces pitched music and drums well enough for
evaluation. Spectral modelling after Serra and Smith, Computer Music Journal 14(4), 1990.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from acestep.types import Posterior

NOISE_EDGES_HZ = (5_500.0, 8_000.0, 11_000.0, 15_000.0, 20_000.0)
ZONE_EDGES_HZ = (0.0, 250.0, 1_000.0, 5_400.0)
# (first MIDI note, window in samples): long windows separate low notes, short windows resolve time.
WINDOWS = ((31, 4096), (36, 8192), (60, 4096), (84, 2048))
NOISE_SEED = 0
NOISE_SAMPLES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class SpectralConfig:
    """Sizes and constants of :class:`SpectralAutoencoder`.

    ``floor`` is the amplitude below which a band counts as silent; ``posterior_scale`` is the fixed standard deviation
    of the posterior of every latent.
    """

    sample_rate: int = 48_000
    hop: int = 1_920
    audio_channels: int = 2
    latent_channels: int = 64
    lowest_note: int = 31
    highest_note: int = 111
    floor: float = 1e-3
    posterior_scale: float = 0.05

    def __post_init__(self) -> None:
        if self.latent_channels > self.features:
            raise ValueError(
                f"autoencoder.latent_channels={self.latent_channels}: need at most the {self.features} analysis "
                "features; lower it or widen the note range"
            )

    @property
    def notes(self) -> int:
        """Number of oscillators, one per semitone."""
        return self.highest_note - self.lowest_note + 1

    @property
    def features(self) -> int:
        """Features per frame: notes, noise bands, and a left-right balance per frequency zone and for the noise."""
        return self.notes + len(NOISE_EDGES_HZ) - 1 + len(ZONE_EDGES_HZ)


class SpectralAutoencoder(nn.Module):
    """Encodes ``(B, 2, S)`` to ``(B, T, 64)`` and back; implements :class:`acestep.types.Autoencoder`.

    :meth:`fit` sets the buffers ``mean`` ``(features,)``, ``analysis`` ``(features, 64)`` and ``synthesis``
    ``(64, features)``.
    """

    mean: Tensor
    analysis: Tensor
    synthesis: Tensor

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.hop = config.sample_rate, config.hop
        self.audio_channels, self.latent_channels = config.audio_channels, config.latent_channels
        self.register_buffer("mean", torch.zeros(config.features))
        self.register_buffer("analysis", torch.zeros(config.features, config.latent_channels))
        self.register_buffer("synthesis", torch.zeros(config.latent_channels, config.features))

    @torch.no_grad()
    def encode(self, audio: Float[Tensor, "b a s"]) -> Posterior:
        """Latents of every whole frame of ``audio``; a remainder shorter than a frame is dropped."""
        mean = (self.features(audio) - self.mean) @ self.analysis
        return Posterior(mean, torch.full_like(mean, self.config.posterior_scale))

    def decode(self, latents: Float[Tensor, "b t c"]) -> Float[Tensor, "b a s"]:
        """Waveform of ``latents``, ``hop`` samples per frame."""
        return self.decode_at(latents, 0)

    @torch.no_grad()
    def decode_at(self, latents: Float[Tensor, "b t c"], first: int) -> Float[Tensor, "b a s"]:
        """Waveform of a section that starts at frame ``first`` of a song: phases continue from the song's start."""
        features = latents @ self.synthesis + self.mean
        notes, bands = self.config.notes, len(NOISE_EDGES_HZ) - 1
        amplitudes = (10 ** (features[..., : notes + bands] - 3) - self.config.floor).clamp(0, 2)
        balance = torch.sigmoid(math.log(10) * features[..., notes + bands :])
        zones = self._zones(latents.device)
        sides = []
        for side in (balance, 1 - balance):
            gains = math.sqrt(2) * side[..., zones]
            tones = _suppress_side_lobes(amplitudes[..., :notes]) * gains[..., :notes]
            noise = self._band_noise(amplitudes[..., notes:] * gains[..., notes:], first)
            sides.append(self._oscillate(tones, first) + noise)
        return torch.stack(sides, dim=1)

    @torch.no_grad()
    def features(self, audio: Float[Tensor, "b a s"]) -> Float[Tensor, "b t f"]:
        """Log10 amplitude of every semitone and noise band, and log10 left-right ratio of every zone, per frame."""
        config = self.config
        left, right = audio[:, 0], audio[:, -1]
        mid = (left + right) / math.sqrt(2)
        tones = [self._tones(mid, window, low, high) for window, low, high in self._window_ranges()]
        zone_edges = [*pairwise(ZONE_EDGES_HZ), (NOISE_EDGES_HZ[0], NOISE_EDGES_HZ[-1])]
        levels = [self._bands(side, 4096, zone_edges) for side in (left, right)]
        noise_levels = self._bands(mid, 2048, list(pairwise(NOISE_EDGES_HZ)))
        amplitudes = torch.cat([*tones, noise_levels], -1)
        ratio = torch.log10((levels[0] + config.floor) / (levels[1] + config.floor))
        return torch.cat([torch.log10(amplitudes + config.floor) + 3, ratio], -1)

    def fit(self, features: Float[Tensor, "n f"], whitening: float = 0.4) -> None:
        """Set the projection to the leading principal components of ``features``.

        ``whitening`` 1 gives every channel unit variance, 0 keeps the variances' proportions; the mean variance over
        channels is 1 in both cases.
        """
        features = features.double()
        mean = features.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((features - mean).T))
        values, vectors = values.flip(0)[: self.latent_channels], vectors.flip(1)[:, : self.latent_channels]
        vectors = vectors * torch.sign(vectors.sum(0))
        widths = values.clamp_min(1e-8) ** (whitening / 2)
        widths = widths * (values / widths**2).mean().sqrt()
        self.mean.copy_(mean)
        self.analysis.copy_(vectors / widths)
        self.synthesis.copy_((vectors * widths).T)

    def _window_ranges(self) -> list[tuple[int, int, int]]:
        edges = [low for low, _ in WINDOWS[1:]] + [self.config.highest_note + 1]
        return [(window, low, high) for (low, window), high in zip(WINDOWS, edges, strict=True)]

    def _frames(self, signal: Float[Tensor, "b s"], window: int) -> Float[Tensor, "b t w"]:
        """Hann-windowed segments of ``window`` samples centred on every frame."""
        frames = signal.shape[-1] // self.hop
        before = window // 2 - self.hop // 2
        after = max((frames - 1) * self.hop + window - before - signal.shape[-1], 0)
        hann = torch.hann_window(window, device=signal.device, dtype=signal.dtype)
        return F.pad(signal, (before, after)).unfold(-1, window, self.hop)[:, :frames] * (2 * hann / hann.sum())

    def _hz(self, low: int, high: int, device: torch.device) -> Tensor:
        notes = torch.arange(low, high, dtype=torch.float64, device=device)
        return 440.0 * 2 ** ((notes - 69) / 12)

    def _tones(self, signal: Float[Tensor, "b s"], window: int, low: int, high: int) -> Float[Tensor, "b t n"]:
        time = torch.arange(window, dtype=torch.float64, device=signal.device) / self.sample_rate
        phase = 2 * math.pi * time[:, None] * self._hz(low, high, signal.device)
        frames = self._frames(signal, window)
        return torch.hypot(frames @ phase.cos().to(signal), frames @ phase.sin().to(signal))

    def _bands(self, signal: Float[Tensor, "b s"], window: int, edges: list[tuple[float, float]]) -> Tensor:
        """RMS amplitude of each frequency band, per frame."""
        power = torch.fft.rfft(self._frames(signal, window)).abs().square()
        hz = torch.fft.rfftfreq(window, 1 / self.sample_rate, device=signal.device)
        inside = torch.stack([((hz >= low) & (hz < high)).to(signal) for low, high in edges], -1)
        return (power @ inside / 3).sqrt()

    def _zones(self, device: torch.device) -> Tensor:
        """Index of the left-right balance of each oscillator and noise band."""
        hz = self._hz(self.config.lowest_note, self.config.highest_note + 1, device)
        tones = torch.bucketize(hz, torch.tensor(ZONE_EDGES_HZ[1:-1], dtype=hz.dtype, device=device))
        return torch.cat([tones, tones.new_full((len(NOISE_EDGES_HZ) - 1,), len(ZONE_EDGES_HZ) - 1)])

    def _endpoints(self, values: Float[Tensor, "b t k"]) -> tuple[Tensor, Tensor]:
        """Values at start and end of each of the ``t + 1`` segments between frame centres."""
        padded = torch.cat([values[:, :1], values, values[:, -1:]], 1)
        return padded[:, :-1], padded[:, 1:]

    def _oscillate(self, amplitudes: Float[Tensor, "b t n"], first: int) -> Float[Tensor, "b s"]:
        """Sum of fixed-phase sinusoids, amplitudes interpolated linearly between frame centres, as matrix products."""
        device = amplitudes.device
        hz = self._hz(self.config.lowest_note, self.config.highest_note + 1, device)
        inside = torch.arange(self.hop, dtype=torch.float64, device=device) / self.sample_rate
        sine = (2 * math.pi * hz[:, None] * inside).sin().to(amplitudes)
        cosine = (2 * math.pi * hz[:, None] * inside).cos().to(amplitudes)
        segments = (torch.arange(amplitudes.shape[1] + 1, dtype=torch.float64, device=device) + first) * self.hop
        cycles = segments[:, None] * hz / self.sample_rate + 0.618034 * torch.arange(len(hz), device=device)
        phase = 2 * math.pi * (cycles % 1)
        ramp = (inside * self.sample_rate / self.hop).to(amplitudes)
        start, end = (
            (value * phase.cos().to(value)) @ sine + (value * phase.sin().to(value)) @ cosine
            for value in self._endpoints(amplitudes)
        )
        return self._trim(start * (1 - ramp) + end * ramp)

    def _band_noise(self, amplitudes: Float[Tensor, "b t k"], first: int) -> Float[Tensor, "b s"]:
        """Looped filtered noise with the given amplitudes."""
        ramp = torch.arange(self.hop, device=amplitudes.device) / self.hop
        out = torch.zeros((), device=amplitudes.device)
        for band, loop in enumerate(_noise_loops(self.sample_rate)):
            noise = loop.to(amplitudes)
            start, end = self._endpoints(amplitudes[..., band : band + 1])
            envelope = start * (1 - ramp) + end * ramp
            samples = torch.arange(envelope.shape[1] * self.hop, device=amplitudes.device) + first * self.hop
            index = samples % NOISE_SAMPLES
            out = out + envelope * noise[index].view(envelope.shape[1], self.hop)
        return self._trim(out)

    def _trim(self, segments: Float[Tensor, "b n h"]) -> Float[Tensor, "b s"]:
        """Drop the half frame before the first frame's centre and the one after the last."""
        return segments.flatten(1)[:, self.hop // 2 : -(self.hop // 2)]


@cache
def _noise_loops(sample_rate: int) -> list[Float[Tensor, " s"]]:
    """One loop of unit-variance noise per band, from a fixed seed."""
    spectrum = torch.fft.rfft(torch.randn(NOISE_SAMPLES, generator=torch.Generator().manual_seed(NOISE_SEED)))
    hz = torch.fft.rfftfreq(NOISE_SAMPLES, 1 / sample_rate)
    edges = pairwise(NOISE_EDGES_HZ)
    loops = [torch.fft.irfft(spectrum * ((hz >= low) & (hz < high))) for low, high in edges]
    return [loop / loop.std() for loop in loops]


def _suppress_side_lobes(amplitudes: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
    """Attenuate semitones weaker than a neighbour: they are spectral leakage of that note."""
    loudest = F.max_pool1d(amplitudes, 3, stride=1, padding=1)
    return amplitudes * (amplitudes / loudest.clamp_min(1e-9)) ** 2
