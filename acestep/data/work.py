"""One process that encodes: threads read, measure and resample the next songs while it encodes the present one."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from acestep.audio.audio import stream_audio
from acestep.audio.tiling import Window
from acestep.data.encode import TiledEncoder, fitted_blocks
from acestep.data.files import READ_SECONDS, check_whole, file_hash, file_state, measured, opened
from acestep.data.journal import Known, Seen, add_pending, words_hash
from acestep.data.manifests import Item
from acestep.data.measure import Level, Listener
from acestep.data.settings import Settings
from acestep.data.store import Row
from acestep.data.words import Description
from acestep.types import Autoencoder, Song

FLOAT16_MAX = float(np.finfo(np.float16).max)
TILES_AHEAD = 2


@dataclass(frozen=True)
class Task:
    """One song to encode, unless the store knows its bytes already."""

    item: Item
    known: Known | None = None


@dataclass(frozen=True)
class Stored:
    """A song that was encoded and is on disk.

    ``busy`` seconds were the autoencoder's, of ``took`` since its process was through with the song before.
    """

    name: str
    seen: Seen | None
    seconds: float
    busy: float
    took: float


@dataclass(frozen=True)
class Kept:
    """A song that was in the store already, with its words if they have changed."""

    name: str
    seen: Seen | None
    words: Row | None


@dataclass(frozen=True)
class Skipped:
    """A file that is not in the store, and why."""

    file: str
    reason: str


Result = Stored | Kept | Skipped


def unchanged(song: Song) -> Song:
    """``song``."""
    return song


@dataclass(frozen=True, kw_only=True)
class Work:
    """How songs are encoded, and where to.

    Args:
        encoder: cuts songs into tiles.
        level: what happens to their loudness.
        checked: brings the words of a song into the form that prompts have; raises ``ValueError`` where it cannot.
        readers: threads that read ahead in every process that encodes.
    """

    encoder: TiledEncoder = field(default_factory=TiledEncoder)
    level: Level = Level.none
    checked: Callable[[Song], Song] = unchanged
    readers: int = 2

    def words(self, item: Item) -> Row:
        """The columns of a song's words."""
        return word_columns(item.words(), self.checked)


class SongEncoder:
    """Encodes one song after another with one autoencoder."""

    def __init__(self, autoencoder: Autoencoder, work: Work, store: Path, settings: Settings) -> None:
        self.autoencoder, self.work, self.store, self.settings = autoencoder, work, store, settings
        self._through = 0.0

    def __call__(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """The result of each, in order. Encoded songs are on disk by the time they are told of."""
        stop = threading.Event()
        self._through = time.perf_counter()
        with ThreadPoolExecutor(self.work.readers) as pool, ThreadPoolExecutor(1) as writer:
            try:
                written: deque[Future[Result]] = deque()
                for reading in self._readings(tasks, pool, stop):
                    written.append(writer.submit(self._finish(reading)))
                    if len(written) > 1:  # one song is written while the next is encoded
                        yield written.popleft().result()
                while written:
                    yield written.popleft().result()
            finally:
                stop.set()

    def _readings(self, tasks: Iterable[Task], pool: Executor, stop: threading.Event) -> Iterator[_Reading]:
        """Songs that are being read, those after them too."""
        ahead: deque[_Reading] = deque()
        for task in tasks:
            reading = _Reading(task, self.work, self.autoencoder, stop)
            pool.submit(reading.run)
            ahead.append(reading)
            if len(ahead) > self.work.readers:
                yield ahead.popleft()
        yield from ahead

    def _finish(self, reading: _Reading) -> Callable[[], Result]:
        """What is left to do with a song, now encoded, and its result."""
        name = reading.task.item.name
        started = time.perf_counter()
        try:
            first = reading.get()
            if isinstance(first, Kept):
                return partial(_given, first)
            latents = self._encoded(first, reading)
        except (ValueError, OSError) as error:
            return partial(_given, Skipped(name, reason(error, reading.task.item)))
        finally:
            reading.drop()
        now = time.perf_counter()
        took, self._through = now - self._through, now
        stored = Stored(name, reading.seen, reading.row["seconds"], now - started - reading.waited, took)
        return partial(self._written, reading.row | latents, stored)

    def _written(self, row: Row, stored: Stored) -> Stored:
        add_pending(self.store, row, self.settings)
        return stored

    def _encoded(self, first: Window | None, reading: _Reading) -> Row:
        posterior = self.work.encoder.encode(reading.tiles(first), self.autoencoder)
        mean, scale = posterior.mean[0].float().cpu(), posterior.scale[0].float().cpu()
        if not (mean.abs().max() <= FLOAT16_MAX and scale.abs().max() <= FLOAT16_MAX):
            raise ValueError("the autoencoder's latents leave the range of float16")
        return {"frames": len(mean), "mean": mean.half().numpy(), "scale": scale.half().numpy()}


def _given(result: Result) -> Result:
    return result


class _Reading:
    """One song on its way from its file to the autoencoder, read by a thread of its own."""

    def __init__(self, task: Task, work: Work, autoencoder: Autoencoder, stop: threading.Event) -> None:
        self.task, self.work, self.autoencoder, self.stop = task, work, autoencoder, stop
        self.row: Row = {}
        self.seen: Seen | None = None
        self.waited = 0.0
        self._dropped = threading.Event()
        self._queue: queue.Queue[Window | Kept | Exception | None] = queue.Queue(TILES_AHEAD)

    def get(self) -> Window | Kept | None:
        """The next part; ``None`` when the song is through. Raises what reading raised."""
        started = time.perf_counter()
        part = self._queue.get()
        self.waited += time.perf_counter() - started
        if isinstance(part, Exception):
            raise part
        return part

    def tiles(self, first: Window | Kept | None) -> Iterator[Window]:
        """``first``, and all that follow."""
        part = first
        while isinstance(part, Window):
            yield part
            part = self.get()

    def drop(self) -> None:
        """Nothing more is wanted of this song."""
        self._dropped.set()

    def run(self) -> None:
        """Read the song; whatever goes wrong is raised by ``get``."""
        try:
            for part in self._parts():
                if not self._put(part):
                    return
            self._put(None)
        except Exception as error:  # noqa: BLE001 - handed to the thread that asks for the next part
            self._put(error)

    def _put(self, part: Window | Kept | Exception | None) -> bool:
        while not (self.stop.is_set() or self._dropped.is_set()):
            try:
                self._queue.put(part, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _parts(self) -> Iterator[Window | Kept]:
        item, known = self.task.item, self.task.known
        state = file_state(item.audio)
        unread = known is not None and state is not None and known.seen == Seen(known.sha256, *state)
        digest = known.sha256 if known and unread else file_hash(item.audio)
        self.seen = Seen(digest, *state) if state else None
        words = self.work.words(item)
        if known and digest == known.sha256:
            yield Kept(item.name, self.seen, words if words_hash(words) != known.words else None)
            return
        gain = 1.0
        if self.work.level is not Level.none:
            gain = self.work.level.gain(measured(item.audio))
        with stream_audio(opened(item.audio), READ_SECONDS) as stream:
            listener = Listener(stream.sample_rate, stream.channels)
            blocks = (block * gain if gain != 1.0 else block for block in _heard(stream.blocks, listener))
            yield from self.work.encoder.tiles(
                fitted_blocks(blocks, stream.sample_rate, self.autoencoder), self.autoencoder
            )
        measures = listener.measures()
        check_whole(measures, stream.samples, stream.sample_rate)
        self.row = {"source": item.name, "sha256": digest} | words | asdict(measures)


def _heard(blocks: Iterable[Tensor], listener: Listener) -> Iterator[Tensor]:
    for block in blocks:
        listener(block)
        yield block


def word_columns(description: Description, checked: Callable[[Song], Song] = unchanged) -> Row:
    """The columns of ``WORDS``."""
    song = checked(description.song)
    return {
        "caption": song.caption,
        "lyrics": song.lyrics,
        "lyric_times": list(description.times),
        "language": song.language,
        "bpm": song.bpm,
        "key": song.key,
        "time_signature": song.time_signature,
        "instrumental": description.instrumental,
        "tags": list(description.tags),
        "genre": description.genre,
        "tag": description.tag,
        "split": description.split,
        "licence": description.licence,
        "truth": description.truth,
    }


def reason(error: Exception, item: Item) -> str:
    """Why a song cannot be used, in one sentence, without the way to the file, which is another on every machine."""
    text = " ".join(str(error).split())
    return (
        text.replace(f"{item.audio}: ", "").replace(str(item.audio), item.name)
        if isinstance(item.audio, Path)
        else text
    )
