"""Writing a latent store so that a process killed at any time loses no encoded song.

Every song's row is first written to a file of its own in ``.pending``; from time to time these are merged into a
shard. Files are written atomically, a new shard is written before what it replaces is deleted, and what a killed
process left is cleaned up when the store is next opened for writing.
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

from acestep.data.store import (
    TEXT_COLUMNS,
    Row,
    Settings,
    check_settings,
    read_columns,
    schema,
    shard_paths,
    shard_table,
    write_arrow,
    write_settings,
    write_shard,
)
from acestep.files import atomic

PENDING = ".pending"
FILE_STATES = ".seen.json"


class FileState(NamedTuple):
    """The hash of a file, and size and times that it then had: while they stay, the file need not be hashed again."""

    sha256: str
    size: int
    mtime_ns: int
    ctime_ns: int


class StoredVersion(NamedTuple):
    """Which audio and text of a song are stored: decides whether it is encoded again."""

    sha256: str
    text_hash: str
    file: FileState | None = None


@contextmanager
def store_lock(store: Path) -> Iterator[None]:
    """Lock ``store`` against other writers; released also when the process dies. Raises ``ValueError`` if locked."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"store={store}: another process is writing to it; wait until it is done, or end it"
            ) from error
        yield


def text_hash(row: Mapping[str, object]) -> str:
    """A hash of the ``TEXT_COLUMNS`` of a song."""
    return hashlib.sha256(json.dumps([row.get(name) for name in TEXT_COLUMNS]).encode()).hexdigest()[:32]


def add_pending(store: Path, row: Row, settings: Settings) -> None:
    """Write one encoded song; can be called from any process."""
    name = hashlib.sha256(str(row["source"]).encode()).hexdigest()[:32]
    write_arrow(store / PENDING / f"{name}.arrow", shard_table([row], settings))


class StoreWriter:
    """A store opened for writing, under ``store_lock``.

    Attributes:
        versions: of every song in it, pending or in a shard, by name.
    """

    def __init__(self, store: Path, settings: Settings, shard_songs: int) -> None:
        """Open or create a store, and clean up after a killed process.

        Raises:
            ValueError: its songs were encoded with other ``settings``.
        """
        self.store, self.settings, self.shard_songs = store, settings, shard_songs
        if not shard_paths(store) and not self._pending():
            write_settings(store, settings)
        check_settings(store, settings)
        for folder in (store, store / PENDING):
            for path in folder.glob(".[0-9]*.*"):  # temporary files of atomic writes
                path.unlink(missing_ok=True)
        self.versions: dict[str, StoredVersion] = {}
        for path in reversed(shard_paths(store)):
            self._index_shard(path)
        self._pending_songs = sum(self._index_pending(path) for path in self._pending())
        self._new_states: dict[str, FileState] = {}
        for name, state in _read_file_states(store).items():
            if name in self.versions:
                self.versions[name] = self.versions[name]._replace(file=state)

    def set_file_state(self, name: str, state: FileState | None) -> None:
        """Remember the state of a song's file, if known; written by ``close``, since losing it only costs time."""
        if state is not None:
            self._new_states[name] = state

    def count_pending(self) -> None:
        """Call after every ``add_pending``; merges pending songs when they fill a shard."""
        self._pending_songs += 1
        if self._pending_songs >= self.shard_songs:
            self.merge_pending()

    def close(self) -> None:
        """Merge the last pending songs and write file states."""
        self.merge_pending()
        with atomic(self.store / FILE_STATES) as aside:
            aside.write_text(json.dumps(_read_file_states(self.store) | self._new_states), encoding="utf-8")

    def merge_pending(self) -> None:
        """Write a shard of all pending songs, and delete older rows of the same songs from the other shards."""
        paths = self._pending()
        self._pending_songs = 0
        if not paths:
            return
        shards = shard_paths(self.store)
        rows = pa.concat_tables([_read_pending(path) for path in paths]).sort_by("source")
        number = max((int(path.stem.rpartition("-")[2]) for path in shards), default=-1) + 1
        write_shard(self.store / f"songs-{number:05d}.parquet", rows)
        for shard in shards:
            _delete_rows(shard, rows.column("source").to_pylist())
        for path in paths:
            path.unlink()

    def update_text(self, changed: Mapping[str, Row]) -> None:
        """Replace the ``TEXT_COLUMNS`` of songs in shards, by name."""
        columns = schema(int(self.settings["latent_channels"]))
        for shard in shard_paths(self.store) if changed else []:
            rows = read_columns(shard).to_pylist()
            if changed.keys() & {row["source"] for row in rows}:
                rows = [row | changed.get(row["source"], {}) for row in rows]
                text = pa.Table.from_pylist(rows, schema=pa.schema(list(columns)[:-2]))
                latents = pq.read_table(shard, columns=["mean", "scale"])
                with_metadata = columns.with_metadata(pq.read_schema(shard).metadata)
                write_shard(shard, pa.Table.from_arrays([*text.columns, *latents.columns], schema=with_metadata))

    def _pending(self) -> list[Path]:
        return sorted((self.store / PENDING).glob("[!.]*.arrow"))

    def _index_shard(self, path: Path) -> None:
        """Add the songs of a shard to ``versions``; delete those that a newer shard has as well."""
        rows = read_columns(path).to_pylist()
        duplicates = [row["source"] for row in rows if row["source"] in self.versions]
        if duplicates:
            _delete_rows(path, duplicates)
        self.versions |= {
            row["source"]: StoredVersion(row["sha256"], text_hash(row))
            for row in rows
            if row["source"] not in self.versions
        }

    def _index_pending(self, path: Path) -> bool:
        """Add a pending song to ``versions``, or delete it if a shard has it already."""
        (row,) = _read_pending(path).drop_columns(["mean", "scale"]).to_pylist()
        in_shard = self.versions.get(row["source"])
        if in_shard and in_shard.sha256 == row["sha256"]:
            path.unlink()
            return False
        self.versions[row["source"]] = StoredVersion(row["sha256"], text_hash(row))
        return True


def _read_file_states(store: Path) -> dict[str, FileState]:
    path = store / FILE_STATES
    if not path.is_file():
        return {}
    return {name: FileState(*state) for name, state in json.loads(path.read_text(encoding="utf-8")).items()}


def _read_pending(path: Path) -> pa.Table:
    with pa.OSFile(str(path), "rb") as file:
        return pa.ipc.open_file(file).read_all()


def _delete_rows(shard: Path, names: Iterable[str]) -> None:
    """Delete the rows of ``names``, and the shard if none is left."""
    stale = pc.is_in(read_columns(shard).column("source"), value_set=pa.array(names, pa.string()))
    if pc.all(stale).as_py():
        shard.unlink()
    elif pc.any(stale).as_py():
        write_shard(shard, pq.read_table(shard).filter(pc.invert(stale)))
