"""Encodes songs into a latent store once; every file of a source is stored, or listed as skipped with a reason.

Each encoding process reads, measures and resamples the next songs in threads while its autoencoder runs.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from acestep.audio.audio import stream_audio
from acestep.audio.loudness import Normalize
from acestep.audio.tiling import Window
from acestep.data.audio_checks import AudioMeter, as_file, measure_audio
from acestep.data.encode import TiledEncoder, convert_blocks
from acestep.data.sources import SourceSong, open_source
from acestep.data.store import FORMAT, Row, Settings, autoencoder_settings
from acestep.data.store_writer import FileState, StoredVersion, StoreWriter, add_pending, store_lock, text_hash
from acestep.files import file_hash, file_state
from acestep.songs import Song
from acestep.types import Autoencoder

FLOAT16_MAX = float(np.finfo(np.float16).max)
TILES_AHEAD = 2
JOBS_PER_TASK = 8
"""Songs that a worker process gets at a time; it reads ahead within them."""

LoadAutoencoder = Callable[[], Autoencoder]
OnSong = Callable[[int, int | None], None]


@dataclass(frozen=True)
class EncodeJob:
    """One song to encode, unless its audio is that of the stored ``version``."""

    song: SourceSong
    version: StoredVersion | None = None


@dataclass(frozen=True)
class EncodedSong:
    """A song that was encoded and written to the store.

    Attributes:
        name: of the song.
        file: the state of its file, if known.
        seconds: duration.
        busy: seconds for which the autoencoder ran.
        took: seconds since this process finished the song before.
    """

    name: str
    file: FileState | None
    seconds: float
    busy: float
    took: float


@dataclass(frozen=True)
class UnchangedSong:
    """A song whose audio was in the store already; ``text`` are its text columns if they have changed."""

    name: str
    file: FileState | None
    text: Row | None


@dataclass(frozen=True)
class SkippedFile:
    """A file that is not stored, and why."""

    file: str
    reason: str


EncodeResult = EncodedSong | UnchangedSong | SkippedFile


@dataclass
class Outcome:
    """Counts of a run.

    Attributes:
        stored: songs that were encoded.
        kept: songs that were in the store already.
        skipped: files that could not be used.
        seconds_of_audio: total duration of the encoded songs.
        encoder_busy: share of the worker processes' time in which their autoencoders ran.
    """

    stored: int = 0
    kept: int = 0
    skipped: list[SkippedFile] = field(default_factory=list)
    seconds_of_audio: float = 0.0
    encoder_busy: float = field(default=0.0, compare=False)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Encodes the songs of a source into a store.

    A second run encodes only what is new or has changed: a song is identified by its name in the source and the hash of
    its audio file. Text is read in every run, so that correcting a caption needs no encoding. A killed run continues
    with the songs that were being encoded. Songs that were removed from the source stay in the store.

    Args:
        encoder: encodes in tiles.
        normalize: level of the audio before it is encoded; upstream's is ``none``, the others read every file twice.
        validate: normalises the metadata of a song for prompts; raises ``ValueError`` where it is invalid.
        readers: threads that read ahead in every encoding process.
        workers: processes that read and encode, each with its own autoencoder; 0 encodes in this process.
        shard_songs: songs in a shard.
    """

    encoder: TiledEncoder = field(default_factory=TiledEncoder)
    normalize: Normalize = Normalize.none
    validate: Callable[[Song], Song] | None = None
    readers: int = 2
    workers: int = 0
    shard_songs: int = 64

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: need 0 (in this process) or more")
        for name in ("shard_songs", "readers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: need at least 1")

    def __call__(
        self,
        source: str | Path,
        store: str | Path,
        load_autoencoder: LoadAutoencoder,
        on_song: OnSong | None = None,
    ) -> Outcome:
        """Bring ``store`` up to date with ``source``.

        Args:
            source: see ``open_source``.
            store: folder, created if needed.
            load_autoencoder: called once in every encoding process; must be picklable if there are ``workers``.
            on_song: called after every song with the number of songs done and in all (``None`` while unknown).

        Raises:
            ValueError: the source cannot be read, or the store was made with other settings or is being written to.
        """
        opened, store = open_source(source), Path(store)
        autoencoder = load_autoencoder()
        settings = self.settings(autoencoder)
        outcome, repeated, changed_text = Outcome(), list[SkippedFile](), dict[str, Row]()
        busy = took = 0.0
        with store_lock(store):
            writer = StoreWriter(store, settings, self.shard_songs)
            encode = SongEncoder(autoencoder, self, store, settings)
            songs = _without_repeated(opened.songs, repeated)
            jobs = (EncodeJob(song, writer.versions.get(song.name)) for song in songs)
            for done, result in enumerate(self._results(jobs, encode, load_autoencoder), start=1):
                if isinstance(result, SkippedFile):
                    outcome.skipped.append(result)
                else:
                    writer.set_file_state(result.name, result.file)
                if isinstance(result, EncodedSong):
                    writer.count_pending()
                    outcome.stored += 1
                    outcome.seconds_of_audio += result.seconds
                    busy, took = busy + result.busy, took + result.took
                elif isinstance(result, UnchangedSong):
                    outcome.kept += 1
                    changed_text |= {result.name: result.text} if result.text is not None else {}
                if on_song is not None:
                    on_song(done, opened.total)
            writer.close()
            writer.update_text(changed_text)
        outcome.skipped += repeated
        outcome.encoder_busy = busy / took if took else 0.0
        return outcome

    def settings(self, autoencoder: Autoencoder) -> Settings:
        """The settings that a store made by this run has."""
        return {
            "format": FORMAT,
            **autoencoder_settings(autoencoder),
            "chunk": self.encoder.chunk,
            "overlap": self.encoder.overlap,
            "loudness": self.normalize.value,
        }

    def text_columns(self, song: SourceSong) -> Row:
        """The validated text of a song as columns of the store."""
        text = song.read_text()
        return (replace(text, song=self.validate(text.song)) if self.validate else text).columns()

    def gain(self, audio: Path | bytes) -> float:
        """The factor for a file's samples; 1 for songs that are silent or too quiet to measure."""
        if self.normalize is Normalize.none:
            return 1.0
        measures = measure_audio(audio)
        if measures.peak == 0 or measures.loudness is None:
            return 1.0
        return self.normalize.gain(measures.peak, measures.loudness)

    def _results(self, jobs: Iterator[EncodeJob], encode: SongEncoder, load: LoadAutoencoder) -> Iterator[EncodeResult]:
        if self.workers == 0:
            yield from encode(jobs)
            return
        context = multiprocessing.get_context("spawn")
        start = (load, encode.options, encode.store, encode.settings)
        try:
            with ProcessPoolExecutor(self.workers, context, _start_worker, start) as pool:
                yield from _results_in_order(pool, jobs, ahead=2 * self.workers)
        except BrokenProcessPool as error:
            raise ValueError(
                f"workers={self.workers}: a worker process died, probably out of memory; use fewer workers, "
                "and run again to continue"
            ) from error


class SongEncoder:
    """Encodes songs one after another with one autoencoder, and writes them to a store."""

    def __init__(self, autoencoder: Autoencoder, options: Preprocess, store: Path, settings: Settings) -> None:
        self.autoencoder, self.options, self.store, self.settings = autoencoder, options, store, settings
        self._finished = 0.0

    def __call__(self, jobs: Iterable[EncodeJob]) -> Iterator[EncodeResult]:
        """The results of ``jobs``, in order. A song is on disk when its result is yielded."""
        stop = threading.Event()
        self._finished = time.perf_counter()
        with ThreadPoolExecutor(self.options.readers) as pool, ThreadPoolExecutor(1) as writer:
            try:
                written: deque[Future[EncodeResult]] = deque()
                for reader in self._readers(jobs, pool, stop):
                    written.append(writer.submit(self._write, *self._encode(reader)))
                    if len(written) > 1:  # one song is written while the next is encoded
                        yield written.popleft().result()
                while written:
                    yield written.popleft().result()
            finally:
                stop.set()

    def _readers(self, jobs: Iterable[EncodeJob], pool: Executor, stop: threading.Event) -> Iterator[_SongReader]:
        """A running reader for each job, and for some jobs ahead."""
        ahead: deque[_SongReader] = deque()
        for job in jobs:
            reader = _SongReader(job, self.options, self.autoencoder, stop)
            pool.submit(reader.run)
            ahead.append(reader)
            if len(ahead) > self.options.readers:
                yield ahead.popleft()
        yield from ahead

    def _encode(self, reader: _SongReader) -> tuple[EncodeResult, Row | None]:
        """The result of a song, and the row to write."""
        started = time.perf_counter()
        try:
            first = reader.get()
            if isinstance(first, UnchangedSong):
                return first, None
            latents = self._latents(first, reader)
        except (ValueError, OSError) as error:
            return SkippedFile(reader.job.song.name, skip_reason(error, reader.job.song)), None
        finally:
            reader.cancel()
        now = time.perf_counter()
        took, self._finished = now - self._finished, now
        busy = now - started - reader.waited
        result = EncodedSong(reader.job.song.name, reader.file, reader.row["seconds"], busy, took)
        return result, reader.row | latents

    def _latents(self, first: Window | None, reader: _SongReader) -> Row:
        posterior = self.options.encoder.encode(reader.tiles(first), self.autoencoder)
        mean, scale = posterior.mean[0].float().cpu(), posterior.scale[0].float().cpu()
        if not (mean.abs().max() <= FLOAT16_MAX and scale.abs().max() <= FLOAT16_MAX):
            raise ValueError("the autoencoder's latents leave the range of float16")
        return {"frames": len(mean), "mean": mean.half().numpy(), "scale": scale.half().numpy()}

    def _write(self, result: EncodeResult, row: Row | None) -> EncodeResult:
        if row is not None:
            add_pending(self.store, row, self.settings)
        return result


class _SongReader:
    """Reads one song in a thread of its own and queues its tiles for the autoencoder.

    Attributes:
        row: the song's columns but its latents; complete after the last tile.
        file: the state of its file, if known.
        waited: seconds that ``get`` waited for tiles.
    """

    def __init__(self, job: EncodeJob, options: Preprocess, autoencoder: Autoencoder, stop: threading.Event) -> None:
        self.job, self.options, self.autoencoder, self.stop = job, options, autoencoder, stop
        self.row: Row = {}
        self.file: FileState | None = None
        self.waited = 0.0
        self._cancelled = threading.Event()
        self._queue: queue.Queue[Window | UnchangedSong | Exception | None] = queue.Queue(TILES_AHEAD)

    def get(self) -> Window | UnchangedSong | None:
        """The next part; ``None`` at the song's end. Raises what ``run`` raised."""
        started = time.perf_counter()
        part = self._queue.get()
        self.waited += time.perf_counter() - started
        if isinstance(part, Exception):
            raise part
        return part

    def tiles(self, first: Window | UnchangedSong | None) -> Iterator[Window]:
        """``first`` and all tiles after it."""
        part = first
        while isinstance(part, Window):
            yield part
            part = self.get()

    def cancel(self) -> None:
        self._cancelled.set()

    def run(self) -> None:
        """Read the song; exceptions are raised by ``get``."""
        try:
            for part in self._parts():
                if not self._put(part):
                    return
            self._put(None)
        except Exception as error:  # noqa: BLE001 - raised again in the thread that calls ``get``
            self._put(error)

    def _put(self, part: Window | UnchangedSong | Exception | None) -> bool:
        while not (self.stop.is_set() or self._cancelled.is_set()):
            try:
                self._queue.put(part, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _parts(self) -> Iterator[Window | UnchangedSong]:
        song, version = self.job.song, self.job.version
        state = file_state(song.audio)
        unmodified = version is not None and state is not None and version.file == FileState(version.sha256, *state)
        digest = version.sha256 if version and unmodified else file_hash(song.audio)
        self.file = FileState(digest, *state) if state else None
        text = self.options.text_columns(song)
        if version and digest == version.sha256:
            yield UnchangedSong(song.name, self.file, text if text_hash(text) != version.text_hash else None)
            return
        gain = self.options.gain(song.audio)
        with stream_audio(as_file(song.audio)) as stream:
            meter = AudioMeter(stream.sample_rate, stream.channels)
            blocks = (block * gain if gain != 1.0 else block for block in meter.metered(stream.blocks))
            converted = convert_blocks(blocks, stream.sample_rate, self.autoencoder)
            yield from self.options.encoder.tiles(converted, self.autoencoder)
        measures = meter.compute(stream.samples)
        self.row = {"source": song.name, "sha256": digest} | text | measures.columns()


def _without_repeated(songs: Iterable[SourceSong], repeated: list[SkippedFile]) -> Iterator[SourceSong]:
    """``songs`` whose name has not occurred before; the others are added to ``repeated``."""
    names = set[str]()
    for song in songs:
        if song.name in names:
            repeated.append(SkippedFile(song.name, "the source has another song of this name, which is used"))
            continue
        names.add(song.name)
        yield song


# Set by the pool's initialiser in each worker process.
_worker: SongEncoder | None = None


def _start_worker(load: LoadAutoencoder, options: Preprocess, store: Path, settings: Settings) -> None:
    global _worker
    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker = SongEncoder(load(), options, store, settings)


def _exit_with_parent() -> None:
    """A killed parent does not close its pool: without this its workers would wait for ever, with their memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_in_worker(jobs: list[EncodeJob]) -> list[EncodeResult]:
    assert _worker is not None
    return list(_worker(jobs))


def _results_in_order(pool: Executor, jobs: Iterator[EncodeJob], ahead: int) -> Iterator[EncodeResult]:
    """Results in the order of ``jobs``, with at most ``ahead`` tasks submitted."""
    waiting: deque[Future[list[EncodeResult]]] = deque()
    while batch := list(islice(jobs, JOBS_PER_TASK)):
        waiting.append(pool.submit(_run_in_worker, batch))
        if len(waiting) == ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def skip_reason(error: Exception, song: SourceSong) -> str:
    """Why a song is skipped, in one line, without folders, which differ between machines."""
    text = " ".join(str(error).split())
    if not isinstance(song.audio, Path):
        return text
    return text.replace(f"{song.audio}: ", "").replace(str(song.audio), song.name)
