"""How a store grows so that a kill at any moment loses nothing: every song is on disk as soon as it is encoded.

A song's row first goes to a file of its own in ``.pending``; from time to time those are gathered into a shard. Files
are written aside and renamed, a new shard is there before what it replaces goes, and what a kill left half done is
put right when the store is opened for writing again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from acestep.data.mirror import read_text
from acestep.data.settings import Settings, differences, read_settings, write_settings
from acestep.data.store import WORDS, Row, replace_shard, schema, shard_paths, table
from acestep.files import atomic

PENDING = ".pending"
SEEN = ".seen.json"


class Seen(NamedTuple):
    """The state of a file when its bytes had this hash: while it stays, the file need not be read again."""

    sha256: str
    size: int
    mtime_ns: int
    ctime_ns: int


class Known(NamedTuple):
    """What of a stored song decides whether it has to be encoded again."""

    sha256: str
    words: str
    seen: Seen | None = None


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Inside, no other process writes to ``store``; the lock goes with its process, however that ends."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"store={store}: another process is writing to it; wait until it is done, or end it"
            ) from error
        yield


def words_hash(row: Mapping[str, object]) -> str:
    """A hash of the words of a song, to see whether they have changed."""
    return hashlib.sha256(json.dumps([row.get(name) for name in WORDS]).encode()).hexdigest()[:32]


def add_pending(store: Path, row: Row, settings: Settings) -> None:
    """Put one encoded song on disk; from any process."""
    content = table([row], settings)
    name = hashlib.sha256(str(row["source"]).encode()).hexdigest()[:32]
    with (
        atomic(store / PENDING / f"{name}.arrow") as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, content.schema) as writer,
    ):
        writer.write_table(content)


class Journal:
    """A store that is being written to, under ``locked``.

    ``known`` has every song in it, gathered or not, by name.
    """

    def __init__(self, store: Path, settings: Settings, shard_songs: int) -> None:
        """Open it, made with ``settings`` or not at all, and put right what a kill left behind.

        Raises:
            ValueError: if its songs were encoded otherwise.
        """
        self.store, self.settings, self.shard_songs = store, settings, shard_songs
        if not shard_paths(store) and not self._pending():
            write_settings(store, settings)
        check_settings(store, settings)
        self._sweep()
        self.known: dict[str, Known] = {}
        for path in reversed(shard_paths(store)):
            self._take_shard(path)
        self.waiting = sum(self._take_pending(path) for path in self._pending())
        self._new: dict[str, Seen] = {}
        for name, seen in _read_seen(store).items():
            if name in self.known:
                self.known[name] = self.known[name]._replace(seen=seen)

    def saw(self, name: str, seen: Seen | None) -> None:
        """Remember the state of a song's file."""
        if seen is not None:
            self._new[name] = seen

    def stored(self) -> None:
        """One more song is pending."""
        self.waiting += 1
        if self.waiting >= self.shard_songs:
            self.gather()

    def close(self) -> None:
        """Gather what is left. Losing the states of files would cost nothing but time, so they are written here."""
        self.gather()
        with atomic(self.store / SEEN) as aside:
            aside.write_text(json.dumps(_read_seen(self.store) | self._new), encoding="utf-8")

    def gather(self) -> None:
        """Make a shard of all pending songs, and take older rows of the same songs out of the others."""
        paths = self._pending()
        self.waiting = 0
        if not paths:
            return
        shards = shard_paths(self.store)
        rows = pa.concat_tables([_read_pending(path) for path in paths]).sort_by("source")
        number = max((int(path.stem.rpartition("-")[2]) for path in shards), default=-1) + 1
        replace_shard(self.store / f"songs-{number:05d}.parquet", rows)
        for shard in shards:
            _drop(shard, rows.column("source").to_pylist())
        for path in paths:
            path.unlink()

    def reword(self, changed: Mapping[str, Row]) -> None:
        """Replace the words of gathered songs, by name."""
        for shard in shard_paths(self.store) if changed else []:
            text = read_text(shard)
            names = text.column("source").to_pylist()
            if changed.keys() & set(names):
                rows = [row | changed.get(row["source"], {}) for row in text.to_pylist()]
                self._replace_text(shard, rows)

    def _replace_text(self, shard: Path, rows: Iterable[Row]) -> None:
        wanted = schema(int(self.settings["latent_channels"])).with_metadata(pq.read_schema(shard).metadata)
        latents = pq.read_table(shard, columns=["mean", "scale"])
        text = pa.Table.from_pylist(list(rows), schema=pa.schema(list(wanted)[: len(wanted) - 2]))
        columns = [*text.columns, *latents.columns]
        replace_shard(shard, pa.Table.from_arrays(columns, schema=wanted))

    def _pending(self) -> list[Path]:
        return sorted((self.store / PENDING).glob("[!.]*.arrow"))

    def _sweep(self) -> None:
        """Files written aside whose writer was killed."""
        for folder in (self.store, self.store / PENDING):
            for path in folder.glob(".[0-9]*.*"):
                path.unlink(missing_ok=True)

    def _take_shard(self, path: Path) -> None:
        """Know the songs of a shard; those that a newer shard has as well go."""
        rows = read_text(path).to_pylist()
        twice = [row["source"] for row in rows if row["source"] in self.known]
        if twice:
            _drop(path, twice)
        self.known |= {
            row["source"]: Known(row["sha256"], words_hash(row)) for row in rows if row["source"] not in self.known
        }

    def _take_pending(self, path: Path) -> bool:
        """Know a pending song; one that its shard holds already goes."""
        (row,) = _read_pending(path).drop_columns(["mean", "scale"]).to_pylist()
        before = self.known.get(row["source"])
        if before and before.sha256 == row["sha256"]:
            path.unlink()
            return False
        self.known[row["source"]] = Known(row["sha256"], words_hash(row))
        return True


def _read_seen(store: Path) -> dict[str, Seen]:
    path = store / SEEN
    if not path.is_file():
        return {}
    return {name: Seen(*state) for name, state in json.loads(path.read_text(encoding="utf-8")).items()}


def check_settings(store: Path, settings: Settings) -> None:
    """Refuse a store whose songs were encoded otherwise, and say what differs."""
    found = differences(read_settings(store), settings)
    if found:
        raise ValueError(f"store={store}: holds songs encoded otherwise ({'; '.join(found)}); name a new folder")


def _read_pending(path: Path) -> pa.Table:
    with pa.OSFile(str(path), "rb") as file:
        return pa.ipc.open_file(file).read_all()


def _drop(shard: Path, names: Iterable[str]) -> None:
    """Take the rows of ``names`` out of ``shard``; an empty one goes."""
    stale = pc.is_in(read_text(shard).column("source"), value_set=pa.array(names, pa.string()))
    if pc.all(stale).as_py():
        shard.unlink()
    elif pc.any(stale).as_py():
        replace_shard(shard, pq.read_table(shard).filter(pc.invert(stale)))
