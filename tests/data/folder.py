"""Small folders of songs, and an autoencoder that costs nothing, for the tests of this room."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from acestep.types import Posterior

RATE = 8_000
HOP = 320


class Means(nn.Module):
    """Latents are four weighted averages of each frame; honours the ``Autoencoder`` protocol."""

    sample_rate = RATE
    hop = HOP
    audio_channels = 2
    latent_channels = 4

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.longest = 0

    def encode(self, audio: Tensor) -> Posterior:
        frames = audio.unflatten(-1, (-1, HOP // 2, 2)).mean(-2)
        mean = self.gain * frames.permute(0, 2, 1, 3).flatten(2)
        self.longest = max(self.longest, mean.shape[1])
        return Posterior(mean, mean.abs() / 2)

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


class Dying(Means):
    """Ends its process, as the kernel does when memory runs out."""

    def encode(self, audio: Tensor) -> Posterior:
        os._exit(9)


class Counting(Means):
    """Leaves a line in ``log`` for every song that it encodes."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def encode(self, audio: Tensor) -> Posterior:
        with self.log.open("a") as file:
            file.write("encoded\n")
        return super().encode(audio)


def write_songs(folder: Path, count: int, rate: int = RATE, channels: int = 2, seconds: float | None = None) -> Path:
    """``count`` songs of 1 s, 1.2 s, ..., or all of ``seconds``, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        samples = rng.uniform(-0.5, 0.5, (int(rate * (seconds or 1 + number / 5)), channels))
        soundfile.write(folder / f"song{number:02d}.wav", samples, rate)
        (folder / f"song{number:02d}.txt").write_text(f"caption {number}", encoding="utf-8")
    return folder
