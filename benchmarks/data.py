"""How fast songs become latents, and latents training batches, on this machine.

``python -m acestep bench data --json FILE``. Decodes and stores FLAC files with an encoder that does nothing, then with
the checkpoint's; reads 60-second crops from a store through the loader that training uses. Some minutes on a CPU.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from acestep.cli.bench import check_numbers
from acestep.data.preprocess import LoadAutoencoder, Preprocess
from acestep.data.store import DEFAULT_SETTINGS, FORMAT, autoencoder_settings, shard_table, write_settings, write_shard
from acestep.files import write_json
from acestep.pipeline.build import load_autoencoder
from acestep.training.datamodule import DataConfig, LatentDataModule
from acestep.types import Posterior
from benchmarks.measure import bench_parser

RATE, SONG_SECONDS, CROP_FRAMES, BATCH = 48_000, 60, 1500, 16
STORE_SONGS, STORE_FRAMES = 128, 6000
WARM_UP_EPOCHS, TIMED_EPOCHS = 2, 4
READING = """x real time: seconds of audio per second. a core: per second of processor time, which does not depend on
what else the machine does."""
"""What the lines say."""


class NoOp(nn.Module):
    """An autoencoder with the published one's rates that does nothing."""

    sample_rate, hop, audio_channels, latent_channels = RATE, 1920, 2, 64

    def encode(self, audio: Tensor) -> Posterior:
        zeros = torch.zeros(audio.shape[0], audio.shape[-1] // self.hop, self.latent_channels)
        return Posterior(zeros, zeros)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.zeros(latents.shape[0], self.audio_channels, latents.shape[1] * self.hop)


@dataclass(frozen=True)
class Result:
    """One measurement: values for JSON, and a line to print."""

    name: str
    values: dict[str, float | str]
    line: str


def measure(load: LoadAutoencoder, songs: int, workers: int) -> Iterator[Result]:
    """Decoding, encoding and loading, one after another."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write_songs(folder / "songs", songs)
        _write_songs(folder / "first", 1)
        Preprocess()(folder / "first", folder / "warm", NoOp)  # what is done once per process is not measured
        core, wall = time.process_time(), time.perf_counter()
        outcome = Preprocess()(folder / "songs", folder / "nothing", NoOp)
        core, wall = time.process_time() - core, time.perf_counter() - wall
        seconds = outcome.seconds_of_audio
        yield Result(
            "decode",
            {"times_real_time_a_core": seconds / core, "times_real_time": seconds / wall, "songs": songs},
            f"FLAC to a store, encoder without work   {seconds / core:8.0f} x real time a core "
            f"({seconds / wall:.0f} x by the clock)",
        )
        autoencoder = load()
        wall = time.perf_counter()
        outcome = Preprocess()(folder / "songs", folder / "latents", lambda: autoencoder)
        speed, busy = seconds / (time.perf_counter() - wall), outcome.encoder_busy
        kind = type(autoencoder).__name__
        yield Result(
            "encode",
            {"autoencoder": kind, "times_real_time": speed, "encoder_busy": busy},
            f"FLAC to a store, {kind:<22} {speed:8.1f} x real time, encoder busy {busy:.1%} of it",
        )
        core, wall, crops = _load_crops(folder / "store", workers)
        yield Result(
            "load",
            {"crops_a_second": crops / wall, "crops_a_core_second": crops / core, "workers": workers},
            f"60 s crops from a warm store            {crops / wall:8.0f} a second ({crops / core:.0f} a core-second)",
        )


def _write_songs(folder: Path, songs: int) -> None:
    """Chords with a little noise: FLAC compresses neither pure tones nor noise as it compresses music."""
    folder.mkdir(parents=True)
    random, at = np.random.default_rng(0), np.arange(RATE * SONG_SECONDS) / RATE
    for number in range(songs):
        chord = sum(np.sin(2 * np.pi * pitch * at) for pitch in random.uniform(80, 2000, 5))
        stereo = np.stack([chord, np.roll(chord, 100)], 1) * 0.1 + random.normal(0, 0.01, (len(at), 2))
        soundfile.write(folder / f"{number:04d}.flac", stereo.astype(np.float32), RATE)


def _load_crops(folder: Path, workers: int) -> tuple[float, float, int]:
    """Core-seconds, seconds and crops of some epochs of training batches from a store of 4-minute songs."""
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
    write_shard(folder / "songs-00000.parquet", shard_table(rows, settings))
    config = DataConfig(path=str(folder), batch_size=BATCH, crop_frames=CROP_FRAMES, held_out=0, workers=workers)
    data, epoch = LatentDataModule(config, seed=0), STORE_SONGS // BATCH
    steps = (WARM_UP_EPOCHS + TIMED_EPOCHS) * epoch
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data.trainer = Trainer(accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False)
    batches = iter(data.train_dataloader())
    for _ in islice(batches, WARM_UP_EPOCHS * epoch):  # maps the file, starts the workers
        pass
    core, wall = _core_seconds(), time.perf_counter()
    crops = sum(len(batch) for batch in batches)
    return _core_seconds() - core, time.perf_counter() - wall, crops


def _core_seconds() -> float:
    """Processor time of this process and its loader processes."""
    seconds = time.process_time()
    for child in active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.is_file():
            user, system = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
            seconds += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = bench_parser("data", __doc__, READING)
    parser.add_argument("--weights", default="micro", help="checkpoint whose autoencoder encodes (default micro)")
    parser.add_argument("--device", default="cpu", help="where to encode (default cpu)")
    parser.add_argument("--songs", type=int, default=16, help="one-minute songs to encode (default 16)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read crops; 0 uses this one (default)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the values there")
    options = parser.parse_args(arguments)
    check_numbers(options)
    values = {}
    for result in measure(partial(load_autoencoder, options.weights, options.device), options.songs, options.workers):
        print(result.line, flush=True)
        values[result.name] = result.values
    if options.json:
        write_json(options.json, values)


if __name__ == "__main__":
    main()
