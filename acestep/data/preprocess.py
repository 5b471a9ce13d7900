"""Songs to latents, once: every file of a folder ends in the store or in the table of what was skipped and why."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from acestep.audio import read_audio
from acestep.data.encode import TiledEncoder
from acestep.data.sources import Description, describe, find_songs
from acestep.data.store import (
    FORMAT,
    Row,
    Settings,
    autoencoder_settings,
    differences,
    read_settings,
    read_text,
    replace_shard,
    shard_paths,
    write_settings,
    write_shard,
)
from acestep.types import Autoencoder

FLOAT16_MAX = float(np.finfo(np.float16).max)

LoadAutoencoder = Callable[[], Autoencoder]


@dataclass(frozen=True)
class Skipped:
    """A file that is not in the store, and why."""

    file: str
    reason: str


@dataclass
class Outcome:
    """The closing counts. ``stored`` were encoded in this run, ``kept`` were in the store already."""

    stored: int = 0
    kept: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    seconds_of_audio: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """One file to encode, unless its bytes hash to ``known``."""

    path: Path
    name: str
    known: str | None


Result = Row | Skipped | None


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Encodes a folder of songs into a store.

    Run again, it encodes only what is new or has changed: a song is known by its path in the folder and the hash of its
    bytes. Text is read anew on every run, so that a corrected caption costs no encoding. Killed, it loses at most the
    songs of one unwritten shard. Songs that left the folder stay in the store.

    ``workers`` processes read and encode, each with its own autoencoder; 0 does it in this one.
    """

    workers: int = 0
    shard_songs: int = 64
    encoder: TiledEncoder = field(default_factory=TiledEncoder)

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing."""
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: need 0 (in this process) or more")
        if self.shard_songs < 1:
            raise ValueError(f"shard_songs={self.shard_songs}: need at least 1")

    def __call__(
        self,
        source: str | Path,
        store: str | Path,
        load_autoencoder: LoadAutoencoder,
        on_song: Callable[[int, int], None] | None = None,
    ) -> Outcome:
        """Bring ``store`` up to date with ``source``. ``on_song`` hears of songs done and in all.

        ``load_autoencoder`` is called once in every process that encodes, so it has to be picklable if there are
        ``workers``.
        """
        source, store = Path(source), Path(store)
        paths = find_songs(source)
        names = [path.relative_to(source).as_posix() for path in paths]
        encode = _Encode(load_autoencoder, self.encoder)
        settings = self._settings(encode.autoencoder)
        _open_for(store, settings)
        known = _refresh_text(store, dict(zip(names, paths, strict=True)))
        tasks = [Task(path, name, known.get(name)) for path, name in zip(paths, names, strict=True)]
        outcome, rows = Outcome(), []
        for done, result in enumerate(self._results(tasks, encode), start=1):
            if result is None:
                outcome.kept += 1
            elif isinstance(result, Skipped):
                outcome.skipped.append(result)
            else:
                rows.append(result)
                outcome.seconds_of_audio += result["seconds"]
            if len(rows) == self.shard_songs or (rows and done == len(tasks)):
                _write(store, rows, settings)
                outcome.stored += len(rows)
                rows = []
            if on_song is not None:
                on_song(done, len(tasks))
        return outcome

    def _settings(self, autoencoder: Autoencoder) -> Settings:
        return {
            "format": FORMAT,
            **autoencoder_settings(autoencoder),
            "chunk": self.encoder.chunk,
            "overlap": self.encoder.overlap,
        }

    def _results(self, tasks: Sequence[Task], encode: _Encode) -> Iterator[Result]:
        if self.workers == 0:
            yield from map(encode, tasks)
            return
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(self.workers, context, _start_worker, (encode.load, self.encoder)) as pool:
                yield from _in_order(pool, tasks, ahead=4 * self.workers)
        except BrokenProcessPool as error:
            raise ValueError(
                f"workers={self.workers}: a worker process died, most likely for want of memory; use fewer, "
                "and run again to go on where this stopped"
            ) from error


class _Encode:
    """Reads and encodes one file after another with one autoencoder."""

    def __init__(self, load: LoadAutoencoder, encoder: TiledEncoder) -> None:
        self.load, self.encoder = load, encoder
        self.autoencoder = load()

    def __call__(self, task: Task) -> Result:
        try:
            digest = _file_hash(task.path)
            if digest == task.known:
                return None
            identity = {"source": task.name, "sha256": digest}
            return identity | _text_columns(describe(task.path)) | self._encoded(task.path)
        except (ValueError, OSError) as error:
            return Skipped(task.name, str(error).replace(str(task.path), task.path.name))

    def _encoded(self, path: Path) -> Row:
        audio = read_audio(path)
        if not audio.samples.isfinite().all():
            raise ValueError(f"{path.name}: samples that are not numbers")
        posterior = self.encoder(audio, self.autoencoder)
        mean, scale = posterior.mean[0].float().cpu(), posterior.scale[0].float().cpu()
        if not (mean.abs().max() <= FLOAT16_MAX and scale.abs().max() <= FLOAT16_MAX):
            raise ValueError(f"{path.name}: the autoencoder's latents leave the range of float16")
        return {
            "seconds": audio.seconds,
            "frames": len(mean),
            "mean": mean.half().numpy(),
            "scale": scale.half().numpy(),
        }


# What a pool's initialiser leaves for the tasks of its process has nowhere else to live.
_worker: _Encode | None = None


def _start_worker(load: LoadAutoencoder, encoder: TiledEncoder) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = _Encode(load, encoder)


def _run_in_worker(task: Task) -> Result:
    assert _worker is not None
    return _worker(task)


def _in_order(pool: Executor, tasks: Sequence[Task], ahead: int) -> Iterator[Result]:
    """Results in the order of ``tasks``, with at most ``ahead`` of them in memory."""
    waiting: deque[Future[Result]] = deque()
    for task in tasks:
        waiting.append(pool.submit(_run_in_worker, task))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _open_for(store: Path, settings: Settings) -> None:
    if not shard_paths(store):
        write_settings(store, settings)
        return
    found = differences(read_settings(store), settings)
    if found:
        raise ValueError(f"store={store}: holds songs encoded otherwise ({'; '.join(found)}); name a new folder")


def _refresh_text(store: Path, paths: dict[str, Path]) -> dict[str, str]:
    """Bring the text of stored songs up to date with their sidecars. Returns the hash of each stored song, by name."""
    known: dict[str, str] = {}
    for shard in shard_paths(store):
        text = read_text(shard)
        rows = text.to_pylist()
        known |= {row["source"]: row["sha256"] for row in rows}
        fresh = [row | _text_now(paths.get(row["source"])) for row in rows]
        if fresh != rows:
            _replace_text(shard, pa.Table.from_pylist(fresh, schema=text.schema))
    return known


def _text_now(path: Path | None) -> Row:
    if path is None:
        return {}
    try:
        return _text_columns(describe(path))
    except (ValueError, OSError):
        return {}


def _replace_text(shard: Path, text: pa.Table) -> None:
    table = pq.read_table(shard)
    for name in text.column_names:
        table = table.set_column(table.schema.get_field_index(name), text.schema.field(name), text.column(name))
    replace_shard(shard, table)


def _write(store: Path, rows: Sequence[Row], settings: Settings) -> None:
    """Add ``rows`` as a new shard, and take older rows of the same files out of the others."""
    names = pa.array([row["source"] for row in rows])
    for shard in shard_paths(store):
        stale = pc.is_in(read_text(shard).column("source"), value_set=names)
        if pc.all(stale).as_py():
            shard.unlink()
        elif pc.any(stale).as_py():
            replace_shard(shard, pq.read_table(shard).filter(pc.invert(stale)))
    numbers = [int(path.stem.rpartition("-")[2]) for path in shard_paths(store)]
    write_shard(store / f"songs-{max(numbers, default=-1) + 1:05d}.parquet", rows, settings)


def _text_columns(description: Description) -> Row:
    song = description.song
    return {
        "caption": song.caption,
        "lyrics": song.lyrics,
        "language": song.language,
        "bpm": song.bpm,
        "key": song.key,
        "time_signature": song.time_signature,
        "truth": description.truth,
    }


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
