"""Small folders of songs and a trivial autoencoder, for the tests of ``acestep.data``."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from acestep.data import LatentStore
from acestep.data.store import read_rows
from acestep.types import Posterior

RATE = 8_000
HOP = 320


class Means(nn.Module):
    """Latents are four weighted averages of each frame; implements the ``Autoencoder`` protocol."""

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
    """Exits its process, as the kernel does when memory runs out."""

    def encode(self, audio: Tensor) -> Posterior:
        os._exit(9)


class Counting(Means):
    """Appends a line to ``log`` for every song that it encodes."""

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


def content_hash(folder: Path) -> str:
    """A hash of every row of a store, whatever its order and its division into shards."""
    store, hashes = LatentStore(folder), []
    rows = {row["source"]: row for row in read_rows(folder)}
    for index, name in enumerate(store.column("source")):
        digest = hashlib.sha256(json.dumps(rows[name], sort_keys=True).encode())
        for array in store.latents(index):
            digest.update(array.numpy().tobytes())
        hashes.append(digest.hexdigest())
    return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()
