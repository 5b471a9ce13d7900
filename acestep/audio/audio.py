"""Waveforms and audio files, read and written by libsndfile."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from acestep.files import atomic
from acestep.songs import Song

SUBTYPES = {".flac": "PCM_24", ".wav": "PCM_24", ".ogg": "VORBIS", ".mp3": "MPEG_LAYER_III"}
WRITE_BLOCK_SECONDS = 10
"""Seconds written at a time: bounds memory, and libsndfile's Vorbis encoder fails on long blocks."""


@dataclass(frozen=True)
class Audio:
    """A waveform.

    Attributes:
        samples: floats in [-1, 1], channels first.
        sample_rate: in Hz.
        song: the request that it was generated from, if any.
    """

    samples: Float[Tensor, "a s"]
    sample_rate: int
    song: Song | None = None

    @property
    def seconds(self) -> float:
        return self.samples.shape[-1] / self.sample_rate

    def save(self, path: str | Path) -> Path:
        """Write 24-bit FLAC or WAV, OGG or MP3, by the suffix of ``path``; atomic.

        Returns:
            The path.

        Raises:
            ValueError: no such format.
        """
        path = Path(path)
        if path.suffix.lower() not in SUBTYPES:
            raise ValueError(
                f"out={path}: cannot write {path.suffix or 'a file without suffix'}; use {', '.join(SUBTYPES)}"
            )
        channels, subtype = self.samples.shape[0], SUBTYPES[path.suffix.lower()]
        with atomic(path) as aside, soundfile.SoundFile(aside, "w", self.sample_rate, channels, subtype) as file:
            for block in self.samples.split(WRITE_BLOCK_SECONDS * self.sample_rate, dim=1):
                file.write(block.T.float().cpu().numpy())
        return path

    def to_24bit(self) -> Audio:
        """Quantised to 24 bits: exactly what reading the FLAC that :meth:`save` writes returns."""
        steps = (self.samples.float() * 2**23).round_().clamp_(-(2**23), 2**23 - 1)
        return replace(self, samples=steps.div_(2**23))

    def _repr_html_(self) -> str:
        """Notebook display: an HTML player with the audio embedded."""
        buffer = BytesIO()
        soundfile.write(buffer, self.samples.T.float().cpu().numpy(), self.sample_rate, format="FLAC")
        return f'<audio controls src="data:audio/flac;base64,{base64.b64encode(buffer.getvalue()).decode()}"></audio>'


def read_audio(path: str | Path) -> Audio:
    """Read a whole file at its own sample rate and channel count.

    Raises:
        ValueError: not an audio file that libsndfile reads.
    """
    with stream_audio(path) as stream:
        empty = torch.zeros(stream.channels, 0)
        return Audio(torch.cat([empty, *stream.blocks], dim=1), stream.sample_rate)


def read_nonempty_audio(path: str | Path) -> Audio:
    """As :func:`read_audio`; also raises ``ValueError`` where the file has no samples."""
    audio = read_audio(path)
    if not audio.samples.numel():
        raise ValueError(f"{path}: holds no sound")
    return audio


@dataclass(frozen=True)
class AudioStream:
    """An audio file that is decoded while it is read.

    Attributes:
        sample_rate: in Hz.
        channels: their number.
        samples: length that the header states; only an estimate in formats without an index, such as MP3.
        blocks: consecutive pieces of the waveform; an iterator, so they can be read once.
    """

    sample_rate: int
    channels: int
    samples: int
    blocks: Iterator[Float[Tensor, "a n"]]


@contextmanager
def stream_audio(source: str | Path | BinaryIO, seconds: float = 10.0) -> Iterator[AudioStream]:
    """Open a file for reading in blocks of ``seconds``, so that memory does not grow with its length.

    Raises:
        ValueError: not an audio file that libsndfile reads, on opening or while decoding.
    """
    name = source if isinstance(source, str | Path) else "audio"
    with _libsndfile_errors(name), soundfile.SoundFile(source) as file:
        yield AudioStream(file.samplerate, file.channels, max(file.frames, 0), _read_blocks(file, seconds))


def _read_blocks(file: soundfile.SoundFile, seconds: float) -> Iterator[Float[Tensor, "a n"]]:
    with _libsndfile_errors(file.name):
        buffer = np.empty((max(1, int(seconds * file.samplerate)), file.channels), dtype=np.float32)
        while len(block := file.read(out=buffer)):
            yield torch.from_numpy(block.T.copy())


@contextmanager
def _libsndfile_errors(name: object) -> Iterator[None]:
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name}: not an audio file that libsndfile can read ({error})") from error
