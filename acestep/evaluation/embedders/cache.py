"""Features of recordings, cached by content: the bytes of the audio file and the fingerprint of the extractor.

A file overwritten under its old name is extracted again; a second run, a second metric with the same extractor or a
second process reuses what is there. Nothing is keyed by a file's name.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file

from acestep.audio.audio import Audio, read_nonempty_audio
from acestep.evaluation.embedders.base import FeatureExtractor, Features
from acestep.files import atomic

Item = TypeVar("Item")
Result = TypeVar("Result")


class FeatureCache:
    """Features in ``folder/EXTRACTOR-FINGERPRINT/AUDIO_SHA256.safetensors``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._last = threading.local()

    def features(self, extractor: FeatureExtractor, recording: Path) -> Features:
        """Features of an audio file, extracted if the cache does not hold them."""
        sha256 = self._sha256(recording)
        path = self.folder / f"{extractor.name}-{extractor.fingerprint[:12]}" / f"{sha256}.safetensors"
        if not path.is_file():
            features = extractor.extract(self._audio(recording, sha256))
            with atomic(path) as aside:
                save_file({name: value.contiguous() for name, value in features.items()}, aside)
        return load_file(path)

    def set_audio(self, recording: Path, audio: Audio) -> None:
        """Use ``audio`` as the content of the file in this thread, until it reads another: saves decoding it."""
        self._last.read = self._sha256(recording), audio

    def _sha256(self, recording: Path) -> str:
        """SHA-256 of the file's bytes, computed once for consecutive extractors."""
        now = recording.stat()
        stamp = recording, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
        last, sha256 = getattr(self._last, "file", (None, ""))
        if last != stamp:
            sha256 = hashlib.sha256(recording.read_bytes()).hexdigest()
            self._last.file = stamp, sha256
        return str(sha256)

    def _audio(self, recording: Path, sha256: str) -> Audio:
        """The recording, read once for consecutive extractors."""
        last, audio = getattr(self._last, "read", ("", None))
        if audio is None or last != sha256:
            audio = read_nonempty_audio(recording)
            self._last.read = sha256, audio
        return audio


def map_songs(function: Callable[[Item], Result], items: Iterable[Item], threaded: bool = True) -> list[Result]:
    """``function`` of every item, in order; ``threaded`` gives each song a core, as one gains little from several."""
    cores = torch.get_num_threads()
    with _float32():
        if not threaded or cores == 1:
            return [function(item) for item in items]
        pool = _thread_pool(cores, os.getpid())
        songs = [pool.submit(function, item) for item in items]
        wait(songs)  # all of them, also after an error: no thread may run on while the caller handles it
        torch.set_num_threads(cores)
        return [song.result() for song in songs]


@contextmanager
def _float32() -> Iterator[None]:
    """Features are extracted in float32, whatever the precision of a surrounding training."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)


@cache
def _thread_pool(cores: int, process: int) -> ThreadPoolExecutor:
    """Kept, since libraries keep buffers for each thread.

    Recreated after a fork (``process``), since threads do not survive it.
    """
    return ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
