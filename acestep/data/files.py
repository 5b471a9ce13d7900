"""What is asked of a song's file, or of the bytes of one: its state, its hash, what can be heard in it."""

from __future__ import annotations

import hashlib
import time
from io import BytesIO
from pathlib import Path

from acestep.audio.audio import stream_audio
from acestep.data.measure import Listener, Measures

READ_SECONDS = 10.0
SETTLED_NS = 2_000_000_000
BROKEN_OFF = 0.02
"""Share of a file's stated length that may be missing; MP3 files state an estimate."""


def measured(audio: Path | bytes) -> Measures:
    """What the waveform of a file says. Raises ``ValueError`` or ``OSError`` where it cannot be read to its end."""
    with stream_audio(opened(audio), READ_SECONDS) as stream:
        listener = Listener(stream.sample_rate, stream.channels)
        for block in stream.blocks:
            listener(block)
    measures = listener.measures()
    check_whole(measures, stream.samples, stream.sample_rate)
    return measures


def check_whole(measures: Measures, samples: int, sample_rate: int) -> None:
    """Refuse a file that ends well before the length that it states."""
    stated = samples / sample_rate
    if measures.seconds < stated * (1 - BROKEN_OFF) - 0.1:
        raise ValueError(f"broken off: {measures.seconds:.1f} s can be decoded of the {stated:.1f} s it should have")


def file_state(audio: Path | bytes) -> tuple[int, int, int] | None:
    """Size and times of a file, which change with its content; ``None`` where there is none, or it has just changed.

    The time of the last change of state cannot be set by anyone. What changed in the last seconds may change again
    within a tick of the clock that files are stamped by.
    """
    try:
        state = None if isinstance(audio, bytes) else audio.stat()
    except OSError:
        return None
    if state is None or time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < SETTLED_NS:
        return None
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def file_hash(audio: Path | bytes) -> str:
    """SHA-256 of a file's bytes. Raises ``OSError`` or ``ValueError`` where there is no such file."""
    if isinstance(audio, bytes):
        return hashlib.sha256(audio).hexdigest()
    if audio.exists() and not audio.is_file():
        raise ValueError("not a regular file")
    with audio.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def opened(audio: Path | bytes) -> Path | BytesIO:
    """What ``stream_audio`` takes."""
    return BytesIO(audio) if isinstance(audio, bytes) else audio
