"""Waveforms as values, and the files they come from and go to. Knows libsndfile; knows no network."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from acestep.files import atomic
from acestep.types import Song

SUBTYPES = {".flac": "PCM_24", ".wav": "PCM_24", ".ogg": "VORBIS"}


@dataclass(frozen=True)
class Audio:
    """A waveform and its rate, channels first, floats in [-1, 1], with the song that asked for it."""

    samples: Float[Tensor, "a s"]
    sample_rate: int
    song: Song | None = None

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.samples.shape[-1] / self.sample_rate

    def save(self, path: str | Path) -> Path:
        """Write FLAC or WAV (24-bit) or OGG, as the suffix says, aside and then renamed. Returns the path."""
        path = Path(path)
        if path.suffix.lower() not in SUBTYPES:
            raise ValueError(
                f"out={path}: cannot write {path.suffix or 'a file without suffix'}; use {', '.join(SUBTYPES)}"
            )
        samples = self.samples.T.float().cpu().numpy()
        with atomic(path) as aside:
            soundfile.write(aside, samples, self.sample_rate, subtype=SUBTYPES[path.suffix.lower()])
        return path

    def _repr_html_(self) -> str:
        """A player that carries the sound in itself: what a notebook shows where a cell ends with an ``Audio``."""
        buffer = BytesIO()
        soundfile.write(buffer, self.samples.T.float().cpu().numpy(), self.sample_rate, format="FLAC")
        return f'<audio controls src="data:audio/flac;base64,{base64.b64encode(buffer.getvalue()).decode()}"></audio>'


def read_audio(path: str | Path) -> Audio:
    """The whole file at its own rate; mono or many channels as they are. Raises ``ValueError`` if it is not audio."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: not an audio file that libsndfile can read ({error})") from error
    return Audio(torch.from_numpy(samples.T.copy()), rate)
