"""What scorers hear of a recording, kept by content: the bytes of the audio and the identity of the listener.

A file overwritten under its old name is heard anew; a second run, a second metric on the same embedder or a second
process finds what is there. Nothing is keyed by a file's name.
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
from typing import Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from acestep.audio.audio import Audio, read_sound
from acestep.files import atomic

Heard = dict[str, Tensor]
Item, Result = TypeVar("Item"), TypeVar("Result")


class Ear(Protocol):
    """Turns audio into the tensors that metrics read. Metrics with ears of one fingerprint share what was heard.

    One that has ``pure``, true, keeps no state: several threads may let it hear at once.
    """

    name: str
    fingerprint: str

    def hear(self, audio: Audio) -> Heard:
        """Tensors of one recording, deterministic, on the CPU."""
        ...


class HearingStore:
    """Heard tensors in ``folder/EAR-FINGERPRINT/AUDIO_SHA256.safetensors``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._last = threading.local()

    def hear(self, ear: Ear, recording: Path) -> Heard:
        """What ``ear`` hears of the file, from the store where it is there."""
        sha256 = self._sha256(recording)
        path = self.folder / f"{ear.name}-{ear.fingerprint[:12]}" / f"{sha256}.safetensors"
        if not path.is_file():
            heard = {name: value.contiguous() for name, value in ear.hear(self._audio(recording, sha256)).items()}
            with atomic(path) as aside:
                save_file(heard, aside)
        return load_file(path)

    def recall(self, recording: Path, audio: Audio) -> None:
        """Take ``audio`` for what is in the file, until this thread hears another: it need not be decoded."""
        self._last.read = self._sha256(recording), audio

    def _sha256(self, recording: Path) -> str:
        """Of the file's bytes, found once for the ears that listen to it one after another."""
        now = recording.stat()
        mark = recording, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
        known, sha256 = getattr(self._last, "file", (None, ""))
        if known != mark:
            sha256 = hashlib.sha256(recording.read_bytes()).hexdigest()
            self._last.file = mark, sha256
        return str(sha256)

    def _audio(self, recording: Path, sha256: str) -> Audio:
        """The recording, read once for the ears that listen to it one after another."""
        known, audio = getattr(self._last, "read", ("", None))
        if audio is None or known != sha256:
            audio = read_sound(recording)
            self._last.read = sha256, audio
        return audio


def each_song(work: Callable[[Item], Result], items: Iterable[Item], at_once: bool = True) -> list[Result]:
    """``work`` on every item, in order. One song gains little by several cores: ``at_once`` gives each a core."""
    cores = torch.get_num_threads()
    with _single_precision():
        if not at_once or cores == 1:
            return [work(item) for item in items]
        pool = _pool(cores, os.getpid())
        songs = [pool.submit(work, item) for item in items]
        wait(songs)  # all of them, whatever happens: nobody may go on beside what an error leads to
        torch.set_num_threads(cores)
        return [song.result() for song in songs]


@contextmanager
def _single_precision() -> Iterator[None]:
    """Songs are heard in float32, whatever the precision of a training around it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)


@cache
def _pool(cores: int, process: int) -> ThreadPoolExecutor:
    """Threads that are kept, since libraries keep buffers for each; a forked process has none of its parent's."""
    return ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
