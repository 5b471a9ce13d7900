"""Folders of audio as Lightning reads them: random pieces of songs, at the autoencoder's rate."""

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
from acestep.data import Draw
from acestep.data.encode import fitted
from acestep.data.sources import find_songs
from acestep.training.datamodule import SongStream
from acestep.types import Autoencoder


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Which audio, how long and how much at a time.

    Args:
        path: folder with audio files, searched to any depth.
        batch_size: pieces per batch and process.
        frames: length of a piece, in latent frames; 34 of the release's are the 65,536 samples of Stable Audio.
        held_out: files kept from training.
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
    """Pieces of equal length, and where each comes from in the list of files."""

    audio: Float[Tensor, "b a s"]
    indices: list[int]

    def __len__(self) -> int:
        """How many pieces."""
        return len(self.audio)

    def to(self, device: torch.device | str) -> AudioBatch:
        """The same on ``device``."""
        return replace(self, audio=self.audio.to(device))


class AudioPieces(Dataset[tuple[Tensor, int]]):
    """A piece of each file; where it begins is a function of ``(seed, epoch, file)``. Short files end in silence."""

    def __init__(self, paths: Sequence[Path], autoencoder: Autoencoder, samples: int, seed: int) -> None:
        self.paths, self.autoencoder, self.samples, self.seed = list(paths), autoencoder, samples, seed

    def __len__(self) -> int:
        """How many files."""
        return len(self.paths)

    def __getitem__(self, draw: Draw | int) -> tuple[Float[Tensor, "a s"], int]:
        """The piece that ``draw`` names; a plain number means epoch 0."""
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        try:
            with soundfile.SoundFile(self.paths[index]) as file:
                wanted = -(-self.samples * file.samplerate // self.autoencoder.sample_rate)
                if file.frames * self.autoencoder.sample_rate < self.autoencoder.hop * file.samplerate:
                    raise ValueError(f"data.path: {self.paths[index]} is shorter than a latent frame; take it out")
                first = int(np.random.default_rng((self.seed, epoch, index)).integers(max(1, file.frames - wanted + 1)))
                file.seek(first)
                read = file.read(wanted, dtype="float32", always_2d=True)
                piece = Audio(torch.from_numpy(read.T.copy()), file.samplerate)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"data.path: {self.paths[index]} cannot be read ({error}); take it out") from error
        samples = fitted(piece, self.autoencoder)[:, : self.samples]
        return F.pad(samples, (0, self.samples - samples.shape[1])), index


class AudioData(SongStream):
    """Pieces of the files in a folder; the files that are held out do not depend on the others."""

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
        self.training = AudioPieces([path for path in paths if path not in held_out], autoencoder, samples, seed)
        self.validation = AudioPieces([path for path in paths if path in held_out], autoencoder, samples, seed)
        self._fingerprint = sha256("\n".join(f"{names[p]} {p.stat().st_size}" for p in paths).encode()).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """What the run's record says about the data."""
        return {
            "path": self.config.path,
            "fingerprint": self._fingerprint,
            "songs": len(self.training),
            "held_out": len(self.validation),
        }

    def collate(self, examples: Sequence[tuple[Tensor, int]]) -> AudioBatch:
        """The pieces as one batch."""
        return AudioBatch(torch.stack([piece for piece, _ in examples]), [index for _, index in examples])
