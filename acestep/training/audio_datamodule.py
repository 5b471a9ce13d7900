"""LightningDataModule of audio files: random crops at the autoencoder's sample rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from acestep.audio.audio import Audio
from acestep.data import EpochIndex
from acestep.data.encode import convert_audio
from acestep.data.sources import find_songs
from acestep.training.datamodule import ResumableDataModule
from acestep.types import Autoencoder


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Audio files, and how they are cropped and batched.

    Args:
        path: folder with audio files, searched recursively.
        batch_size: crops per batch and process.
        frames: length of a crop in latent frames; 34 of the release's are the 65,536 samples of Stable Audio.
        held_out: number of files kept from training, for validation.
        workers: loader processes; 0 reads in the training process.
    """

    path: str
    batch_size: int = 8
    frames: int = 34
    held_out: int = 8
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("frames", 1), ("held_out", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name}={getattr(self, name)}: need at least {least}")


@dataclass(frozen=True)
class AudioBatch:
    """Crops of equal length, and the index of each one's file."""

    audio: Float[Tensor, "b a s"]
    indices: list[int]

    def __len__(self) -> int:
        return len(self.audio)

    def to(self, device: torch.device | str) -> AudioBatch:
        return replace(self, audio=self.audio.to(device))


class AudioCrops(Dataset[tuple[Tensor, int]]):
    """A crop of each file, from a start that is a function of ``(seed, epoch, file)``; short files end in silence."""

    def __init__(self, paths: Sequence[Path], autoencoder: Autoencoder, samples: int, seed: int) -> None:
        self.paths, self.autoencoder, self.samples, self.seed = list(paths), autoencoder, samples, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: EpochIndex | int) -> tuple[Float[Tensor, "a s"], int]:
        """The crop of a file; a plain number means epoch 0."""
        epoch, number = index if isinstance(index, tuple) else (0, index)
        path = self.paths[number]
        try:
            with soundfile.SoundFile(path) as file:
                wanted = -(-self.samples * file.samplerate // self.autoencoder.sample_rate)
                if file.frames * self.autoencoder.sample_rate < self.autoencoder.hop * file.samplerate:
                    raise ValueError(f"data.path: {path} is shorter than a latent frame; take it out")
                random = np.random.default_rng((self.seed, epoch, number))
                file.seek(int(random.integers(max(1, file.frames - wanted + 1))))
                samples = file.read(wanted, dtype="float32", always_2d=True)
                crop = Audio(torch.from_numpy(samples.T.copy()), file.samplerate)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"data.path: {path} cannot be read ({error}); take it out") from error
        converted = convert_audio(crop, self.autoencoder)[:, : self.samples]
        return F.pad(converted, (0, self.samples - converted.shape[1])), number


class AudioDataModule(ResumableDataModule):
    """Crops of the files in a folder; a hash of its name decides whether a file is held out."""

    def __init__(self, config: AudioConfig, autoencoder: Autoencoder, seed: int) -> None:
        super().__init__(config.batch_size, config.workers, seed)
        self.config = config
        folder = Path(config.path)
        paths = find_songs(folder, "data.path")
        if config.held_out >= len(paths):
            raise ValueError(f"data.held_out={config.held_out}: {folder} has {len(paths)} audio files; hold out fewer")
        names = {path: path.relative_to(folder).as_posix() for path in paths}
        ranked = sorted(paths, key=lambda path: sha256(names[path].encode()).digest())
        held_out = set(ranked[: config.held_out])
        samples = config.frames * autoencoder.hop
        self.training = AudioCrops([path for path in paths if path not in held_out], autoencoder, samples, seed)
        self.validation = AudioCrops([path for path in paths if path in held_out], autoencoder, samples, seed)
        self._fingerprint = sha256("\n".join(f"{names[p]} {p.stat().st_size}" for p in paths).encode()).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        return {"path": self.config.path, "fingerprint": self._fingerprint, **super().facts()}

    def collate(self, examples: Sequence[tuple[Tensor, int]]) -> AudioBatch:
        return AudioBatch(torch.stack([crop for crop, _ in examples]), [index for _, index in examples])
