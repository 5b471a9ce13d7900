"""How fast songs become latents, and latents batches, on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from acestep.data.dataset import LatentDataset
from acestep.data.loader import LatentLoader
from acestep.data.preprocess import LoadAutoencoder, Preprocess
from acestep.data.sampler import EpochBatches
from acestep.data.settings import DEFAULT_SETTINGS, FORMAT, autoencoder_settings, write_settings
from acestep.data.store import write_shard
from acestep.types import Posterior

RATE, SONG_SECONDS, CROP_FRAMES, BATCH = 48_000, 60, 1500, 16
STORE_SONGS, STORE_FRAMES = 128, 6000


class NoOp(nn.Module):
    """An autoencoder of the published one's rates that does nothing."""

    sample_rate, hop, audio_channels, latent_channels = RATE, 1920, 2, 64

    def encode(self, audio: Tensor) -> Posterior:
        """Zeros."""
        zeros = torch.zeros(audio.shape[0], audio.shape[-1] // self.hop, self.latent_channels)
        return Posterior(zeros, zeros)

    def decode(self, latents: Tensor) -> Tensor:
        """Silence."""
        return torch.zeros(latents.shape[0], self.audio_channels, latents.shape[1] * self.hop)


@dataclass(frozen=True)
class Figure:
    """Something measured, with its values, and a line for people."""

    name: str
    values: dict[str, float | str]
    line: str


def bench_data(load_autoencoder: LoadAutoencoder, songs: int = 16, workers: int = 0) -> Iterator[Figure]:
    """Decoding, encoding, loading, one after another.

    Core-seconds are those that processes really had: figures a core do not depend on what else the machine does.
    """
    with TemporaryDirectory() as folder:
        place = Path(folder)
        _write_songs(place / "songs", songs)
        _write_songs(place / "first", 1)
        Preprocess()(place / "first", place / "warm", NoOp)  # what a process does once is not what is asked here
        core, wall = time.process_time(), time.perf_counter()
        outcome = Preprocess()(place / "songs", place / "nothing", NoOp)
        core, wall = time.process_time() - core, time.perf_counter() - wall
        heard = outcome.seconds_of_audio
        yield Figure(
            "decode",
            {"times_real_time_a_core": heard / core, "times_real_time": heard / wall, "songs": songs},
            f"FLAC to a store, encoder without work   {heard / core:8.0f} x real time a core ({heard / wall:.0f} x by "
            "the clock)",
        )
        autoencoder = load_autoencoder()
        wall = time.perf_counter()
        outcome = Preprocess()(place / "songs", place / "latents", lambda: autoencoder)
        speed, busy = heard / (time.perf_counter() - wall), outcome.encoder_busy
        name = type(autoencoder).__name__
        yield Figure(
            "encode",
            {"autoencoder": name, "times_real_time": speed, "encoder_busy": busy},
            f"FLAC to a store, {name:<22} {speed:8.1f} x real time, encoder busy {busy:.1%} of it",
        )
        core, wall, crops = _loaded(place / "store", workers)
        yield Figure(
            "load",
            {"crops_a_second": crops / wall, "crops_a_core_second": crops / core, "workers": workers},
            f"60 s crops from a warm store            {crops / wall:8.0f} a second ({crops / core:.0f} a core-second)",
        )


def _write_songs(folder: Path, songs: int) -> None:
    """Chords in a little noise: FLAC packs neither tones nor noise alone as it packs music."""
    folder.mkdir(parents=True)
    random, at = np.random.default_rng(0), np.arange(RATE * SONG_SECONDS) / RATE
    for number in range(songs):
        chord = sum(np.sin(2 * np.pi * pitch * at) for pitch in random.uniform(80, 2000, 5))
        stereo = np.stack([chord, np.roll(chord, 100)], 1) * 0.1 + random.normal(0, 0.01, (len(at), 2))
        soundfile.write(folder / f"{number:04d}.flac", stereo.astype(np.float32), RATE)


def _loaded(folder: Path, workers: int, rounds: int = 4) -> tuple[float, float, int]:
    """Core-seconds, seconds and crops of reading a store of 4-minute songs several times."""
    settings = {"format": FORMAT, **autoencoder_settings(NoOp()), **DEFAULT_SETTINGS}
    latents = np.random.default_rng(0).standard_normal((STORE_FRAMES, 64)).astype(np.float16)
    row = {
        "seconds": STORE_FRAMES / 25,
        "frames": STORE_FRAMES,
        "caption": "a song",
        "lyrics": "[verse]\nla\n" * 40,
        "language": "en",
    }
    rows = [
        {**row, "source": f"{n:04d}", "sha256": f"{n}", "mean": latents, "scale": latents} for n in range(STORE_SONGS)
    ]
    write_settings(folder, settings)
    write_shard(folder / "songs-00000.parquet", rows, settings)
    dataset = LatentDataset(folder, crop_frames=CROP_FRAMES)
    loader = LatentLoader(dataset, EpochBatches(len(dataset), BATCH), workers=workers)
    for _ in range(2):  # maps the file, starts the workers
        for _ in loader:
            pass
    core, wall, crops = _core_seconds(), time.perf_counter(), 0
    for _ in range(rounds):
        crops += sum(len(batch) for batch in loader)
    return _core_seconds() - core, time.perf_counter() - wall, crops


def _core_seconds() -> float:
    """Of this process and its loader processes."""
    seconds = time.process_time()
    for child in active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.is_file():
            user, system = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
            seconds += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return seconds
