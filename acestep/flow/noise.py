"""Random numbers from passed generators, of which every song may have its own.

Numbers are drawn on the generator's device (CPU generators give the same music on every device) and returned there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from acestep.flow.path import Latents

Generators = Generator | Sequence[Generator]
"""One generator for a whole batch, or one per song, which makes a song's draws independent of its batch."""

NoiseSource = Callable[[], Latents]
"""Fresh standard normal latents at every call."""


def normal(shape: Sequence[int], generators: Generators) -> Latents:
    """Standard normal numbers in float32.

    With a CPU generator per song, more frames only append to a song's numbers where the channels are a multiple of 16,
    as latents' 64 are: torch draws in blocks of that size.
    """
    if isinstance(generators, Generator):
        return torch.randn(*shape, generator=generators, device=generators.device)
    _check_count(shape[0], generators)
    return torch.cat([torch.randn(1, *shape[1:], generator=g, device=g.device) for g in generators])


def uniform(songs: int, generators: Generators) -> Float[Tensor, " b"]:
    """Uniform numbers in [0, 1), one per song, in float32."""
    if isinstance(generators, Generator):
        return torch.rand(songs, generator=generators, device=generators.device)
    _check_count(songs, generators)
    return torch.cat([torch.rand(1, generator=g, device=g.device) for g in generators])


def song_generators(seeds: Sequence[int]) -> list[Generator]:
    """One CPU generator per song."""
    return [Generator().manual_seed(seed) for seed in seeds]


def initial_noise(shape: Sequence[int], seeds: int | Sequence[int]) -> Latents:
    """Initial noise of a generation by upstream's rule (``prepare_noise``), on the CPU.

    One seed draws the whole batch from one generator; a list of seeds gives each song its own, so that a song's
    noise depends on neither its batch nor, for shared leading frames, the batch's padded length.
    """
    return normal(shape, Generator().manual_seed(seeds) if isinstance(seeds, int) else song_generators(seeds))


@dataclass(frozen=True)
class SongNoise:
    """Fresh noise at every call, song by song: for SDE sampling and flow editing.

    Each song draws exactly its own ``frames`` from its own generator, zero-padded to the longest, so that the sequence
    of draws does not depend on the batch.
    """

    generators: Sequence[Generator]
    frames: Sequence[int]
    channels: int = 64
    device: torch.device | str = "cpu"

    def __call__(self) -> Latents:
        _check_count(len(self.frames), self.generators)
        draws = [
            torch.randn(frames, self.channels, generator=generator, device=generator.device)
            for frames, generator in zip(self.frames, self.generators, strict=True)
        ]
        return torch.nn.utils.rnn.pad_sequence(draws, batch_first=True).to(self.device)


@dataclass(frozen=True, kw_only=True)
class Retake:
    """Variance-preserving mix with a second noise: 0 is the first noise, 1 the second.

    Source: upstream ``generate_audio`` (``retake_variance``, ``retake_seed``).
    """

    variance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.variance <= 1:
            raise ValueError(f"retake.variance={self.variance}: need 0 (the same take) to 1 (another take)")

    def __call__(self, noise: Latents, other: Latents) -> Latents:
        """The mixed noise, of unit variance."""
        if self.variance == 0:
            return noise
        angle = self.variance * math.pi / 2
        return math.cos(angle) * noise + math.sin(angle) * other


def _check_count(songs: int, generators: Sequence[Generator]) -> None:
    if len(generators) != songs:
        raise ValueError(f"seeds: {len(generators)} for {songs} songs; give one per song, or a single one for all")
