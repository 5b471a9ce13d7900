"""Waveforms as values, and the files they come from and go to. Knows libsndfile; knows no network."""

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
from acestep.types import Song

SUBTYPES = {".flac": "PCM_24", ".wav": "PCM_24", ".ogg": "VORBIS", ".mp3": "MPEG_LAYER_III"}
WRITTEN_SECONDS = 10
"""Written at a time: memory stays bounded, and libsndfile's Vorbis breaks on long blocks."""


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
        """Write FLAC or WAV (24-bit), OGG or MP3, as the suffix says, aside and then renamed. Returns the path."""
        path = Path(path)
        if path.suffix.lower() not in SUBTYPES:
            raise ValueError(
                f"out={path}: cannot write {path.suffix or 'a file without suffix'}; use {', '.join(SUBTYPES)}"
            )
        channels, subtype = self.samples.shape[0], SUBTYPES[path.suffix.lower()]
        with atomic(path) as aside, soundfile.SoundFile(aside, "w", self.sample_rate, channels, subtype) as file:
            for block in self.samples.split(WRITTEN_SECONDS * self.sample_rate, dim=1):
                file.write(block.T.float().cpu().numpy())
        return path

    def as_stored(self) -> Audio:
        """What a reader of the FLAC that :meth:`save` writes gets, to the bit: samples of 24 bits."""
        steps = (self.samples.float() * 2**23).round_().clamp_(-(2**23), 2**23 - 1)
        return replace(self, samples=steps.div_(2**23))

    def _repr_html_(self) -> str:
        """A player that carries the sound in itself: what a notebook shows where a cell ends with an ``Audio``."""
        buffer = BytesIO()
        soundfile.write(buffer, self.samples.T.float().cpu().numpy(), self.sample_rate, format="FLAC")
        return f'<audio controls src="data:audio/flac;base64,{base64.b64encode(buffer.getvalue()).decode()}"></audio>'


def read_audio(path: str | Path) -> Audio:
    """The whole file at its own rate; mono or many channels as they are. Raises ``ValueError`` if it is not audio."""
    with stream_audio(path) as stream:
        empty = torch.zeros(stream.channels, 0)
        return Audio(torch.cat([empty, *stream.blocks], dim=1), stream.sample_rate)


def read_sound(path: str | Path) -> Audio:
    """As :func:`read_audio`; a file without a sample is refused as one that is not audio."""
    audio = read_audio(path)
    if not audio.samples.numel():
        raise ValueError(f"{path}: holds no sound")
    return audio


@dataclass(frozen=True)
class AudioStream:
    """A file that is decoded as it is read: ``blocks`` of (channels, samples), to be taken once, in order.

    ``samples`` is what the file says of its length; formats without an index give an estimate, or nothing true.
    """

    sample_rate: int
    channels: int
    samples: int
    blocks: Iterator[Float[Tensor, "a n"]]


@contextmanager
def stream_audio(source: str | Path | BinaryIO, seconds: float = 10.0) -> Iterator[AudioStream]:
    """The audio of a file in blocks of ``seconds``, so that memory does not grow with the song.

    Raises:
        ValueError: where it is not audio, at once or as soon as decoding meets what it cannot read.
    """
    name = source if isinstance(source, str | Path) else "audio"
    with _readable(name), soundfile.SoundFile(source) as file:
        yield AudioStream(file.samplerate, file.channels, max(file.frames, 0), _blocks(file, seconds))


def _blocks(file: soundfile.SoundFile, seconds: float) -> Iterator[Float[Tensor, "a n"]]:
    with _readable(file.name):
        buffer = np.empty((max(1, int(seconds * file.samplerate)), file.channels), dtype=np.float32)
        while len(block := file.read(out=buffer)):
            yield torch.from_numpy(block.T.copy())


@contextmanager
def _readable(name: object) -> Iterator[None]:
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name}: not an audio file that libsndfile can read ({error})") from error
