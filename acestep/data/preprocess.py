"""Songs to latents, once: every file of a source ends in the store or in the table of what was skipped and why."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from acestep.data.encode import TiledEncoder
from acestep.data.journal import Journal, locked
from acestep.data.manifests import Item, open_source
from acestep.data.measure import Level
from acestep.data.settings import FORMAT, Settings, autoencoder_settings
from acestep.data.store import Row
from acestep.data.work import Kept, Result, Skipped, SongEncoder, Stored, Task, Work, unchanged
from acestep.types import Autoencoder, Song

TASKS_AT_ONCE = 8
"""Songs that a worker process gets at a time; it reads ahead within them."""

LoadAutoencoder = Callable[[], Autoencoder]
OnSong = Callable[[int, int | None], None]


@dataclass
class Outcome:
    """The closing counts. ``stored`` were encoded in this run, ``kept`` were in the store already.

    ``encoder_busy`` is the share of the time, from a process's first song to its last, in which its autoencoder worked.
    """

    stored: int = 0
    kept: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    seconds_of_audio: float = 0.0
    encoder_busy: float = field(default=0.0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Encodes the songs of a source into a store.

    Run again, it encodes only what is new or has changed: a song is known by its name in the source and the hash of its
    bytes. Text is read anew on every run, so that a corrected caption costs no encoding. Killed at any moment, it goes
    on with the songs that were being encoded just then. Songs that left the source stay in the store.

    Args:
        workers: processes that read and encode, each with its own autoencoder; 0 does it in this one.
        shard_songs: songs in a shard.
        encoder: cuts songs into tiles.
        level: what happens to their loudness.
        checked: brings the words of a song into the form that prompts have; raises ``ValueError`` where it cannot.
        readers: threads that read ahead in every process that encodes.
    """

    workers: int = 0
    shard_songs: int = 64
    encoder: TiledEncoder = field(default_factory=TiledEncoder)
    level: Level = Level.none
    checked: Callable[[Song], Song] = unchanged
    readers: int = 2

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing."""
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
        """Bring ``store`` up to date with ``source`` (see ``open_source``).

        ``on_song`` hears of songs done and in all, ``None`` while their number is not known. ``load_autoencoder`` is
        called once in every process that encodes, so it has to be picklable if there are ``workers``.
        """
        found, store = open_source(source), Path(store)
        autoencoder = load_autoencoder()
        settings = self.settings(autoencoder)
        count = _Count()
        with locked(store):
            journal = Journal(store, settings, self.shard_songs)
            encode = SongEncoder(autoencoder, self.work, store, settings)
            tasks = (Task(item, journal.known.get(item.name)) for item in _once(found.items, count))
            for result in self._results(tasks, encode, load_autoencoder):
                count(result)
                if not isinstance(result, Skipped):
                    journal.saw(result.name, result.seen)
                if isinstance(result, Stored):
                    journal.stored()
                if on_song is not None:
                    on_song(count.done, found.total)
            journal.close()
            journal.reword(count.reworded)
        return count.outcome()

    @property
    def work(self) -> Work:
        """What every process that encodes has to know."""
        return Work(encoder=self.encoder, level=self.level, checked=self.checked, readers=self.readers)

    def settings(self, autoencoder: Autoencoder) -> Settings:
        """What a store made by this is made with."""
        return {
            "format": FORMAT,
            **autoencoder_settings(autoencoder),
            "chunk": self.encoder.chunk,
            "overlap": self.encoder.overlap,
            "loudness": self.level.value,
        }

    def _results(self, tasks: Iterator[Task], encode: SongEncoder, load: LoadAutoencoder) -> Iterator[Result]:
        if self.workers == 0:
            yield from encode(tasks)
            return
        context = multiprocessing.get_context("spawn")
        start = (load, encode.work, encode.store, encode.settings)
        try:
            with ProcessPoolExecutor(self.workers, context, _start_worker, start) as pool:
                yield from _in_order(pool, tasks, ahead=2 * self.workers)
        except BrokenProcessPool as error:
            raise ValueError(
                f"workers={self.workers}: a worker process died, most likely for want of memory; use fewer, "
                "and run again to go on where this stopped"
            ) from error


class _Count:
    """What came of the songs so far."""

    def __init__(self) -> None:
        self.done = 0
        self.reworded: dict[str, Row] = {}
        self.twice: list[Skipped] = []
        self._outcome, self._busy, self._took = Outcome(), 0.0, 0.0

    def __call__(self, result: Result) -> None:
        self.done += 1
        if isinstance(result, Stored):
            self._outcome.stored += 1
            self._outcome.seconds_of_audio += result.seconds
            self._busy += result.busy
            self._took += result.took
        elif isinstance(result, Kept):
            self._outcome.kept += 1
            if result.words is not None:
                self.reworded[result.name] = result.words
        else:
            self._outcome.skipped.append(result)

    def outcome(self) -> Outcome:
        self._outcome.skipped += self.twice
        self._outcome.encoder_busy = self._busy / self._took if self._took else 0.0
        return self._outcome


def _once(items: Iterable[Item], count: _Count) -> Iterator[Item]:
    """Items whose name has not come before: a name stands for one song."""
    seen = set[str]()
    for item in items:
        if item.name in seen:
            count.twice.append(Skipped(item.name, "named twice by the source; the first one counts"))
            continue
        seen.add(item.name)
        yield item


# What a pool's initialiser leaves for the tasks of its process has nowhere else to live.
_worker: SongEncoder | None = None


def _start_worker(load: LoadAutoencoder, work: Work, store: Path, settings: Settings) -> None:
    global _worker
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = SongEncoder(load(), work, store, settings)


def _end_with_parent() -> None:
    """A killed parent closes no pool: without this its workers would wait for ever, with their memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_in_worker(tasks: list[Task]) -> list[Result]:
    assert _worker is not None
    return list(_worker(tasks))


def _in_order(pool: Executor, tasks: Iterator[Task], ahead: int) -> Iterator[Result]:
    """Results in the order of ``tasks``, with at most ``ahead`` lots of them on their way."""
    waiting: deque[Future[list[Result]]] = deque()
    while lot := list(islice(tasks, TASKS_AT_ONCE)):
        waiting.append(pool.submit(_run_in_worker, lot))
        if len(waiting) == ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()
