"""The latent store: Parquet shards of encoded songs, made by one autoencoder, read through a memory-mapped mirror.

A store is a folder. ``songs-00000.parquet`` and so on hold one row per song, in the columns of ``schema``, and are read
by plain ``datasets.load_dataset``. ``store.json`` states the settings under which every row was encoded. Latents are
float16: 11 bits, a relative rounding error of at most 0.0005. ``.mirror/`` holds all of it again in a form that can be
read at random, see ``data.mirror``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from acestep.data.mirror import LATENTS, PLACE, SHARD, Shard, open_index, open_shard, read_text
from acestep.data.settings import Settings, differences, fingerprint, read_settings
from acestep.files import atomic
from acestep.types import Song

SONG_FIELDS = ("caption", "lyrics", "language", "seconds", "bpm", "key", "time_signature")
WORDS = {
    "caption": pa.string(),
    "lyrics": pa.string(),
    "lyric_times": pa.list_(pa.float64()),
    "language": pa.string(),
    "bpm": pa.int32(),
    "key": pa.string(),
    "time_signature": pa.string(),
    "instrumental": pa.bool_(),
    "tags": pa.list_(pa.string()),
    "genre": pa.string(),
    "tag": pa.string(),
    "split": pa.string(),
    "licence": pa.string(),
    "truth": pa.string(),
}
"""Columns that can change without the audio: what ``data.words.Description`` says."""
MEASURES = {
    "loudness": pa.float32(),
    "peak": pa.float32(),
    "clipped": pa.float32(),
    "silence": pa.float32(),
    "outline": pa.string(),
}
"""Columns of ``data.measure.Measures``; null in stores older than they are."""

Row = dict[str, Any]


def schema(channels: int) -> pa.Schema:
    """The columns of a shard whose latents have ``channels`` numbers a frame."""
    latents = pa.list_(pa.list_(pa.float16(), channels))
    identity = {"source": pa.string(), "sha256": pa.string(), "seconds": pa.float64(), "frames": pa.int32()}
    return pa.schema([*identity.items(), *WORDS.items(), *MEASURES.items(), *((name, latents) for name in LATENTS)])


class LatentStore:
    """A store, opened for reading. Opening maps one file and reads no latents.

    Songs are in the order of their names, whatever the order in which they were stored, so that a store that grew in
    several runs is to training the same as one made at once.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the store in ``folder``. Raises ``ValueError`` if there is none, or nothing in it."""
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        self._paths = shard_paths(self.folder)
        if not self._paths:
            raise ValueError(f"store={folder}: no songs in it; run `python -m acestep preprocess` on a folder of songs")
        self._index = open_index(self._paths)
        self._shard_of, self._place_of = (self._index.column(name).to_numpy() for name in (SHARD, PLACE))
        self._shards: dict[int, Shard] = {}

    def __len__(self) -> int:
        """How many songs."""
        return len(self._shard_of)

    @cached_property
    def frames(self) -> np.ndarray:
        """Latent frames of every song, (songs,)."""
        return self._index.column("frames").to_numpy()

    @cached_property
    def sha256(self) -> list[str]:
        """Hash of the audio file of every song."""
        return self.column("sha256")

    def column(self, name: str) -> list[Any]:
        """One column of every song; ``None`` where a shard is older than the column."""
        if name in self._index.column_names:
            return self._index.column(name).to_pylist()
        parts = [read_text(path, [name, "frames"]) for path in self._paths]
        values = [part.column(name).to_pylist() if name in part.column_names else [None] * len(part) for part in parts]
        return [values[shard][place] for shard, place in zip(self._shard_of, self._place_of, strict=True)]

    @property
    def frames_per_second(self) -> float:
        """Latent frames in a second of audio."""
        return float(self.settings["sample_rate"]) / float(self.settings["hop"])

    @property
    def fingerprint(self) -> str:
        """A short name for the settings that every row was encoded under."""
        return fingerprint(self.settings)

    def song(self, index: int) -> Song:
        """The words of one song; ``seconds`` is its full duration."""
        shard, place = self._find(index)
        return Song(**{name: shard.columns[name][place].as_py() for name in SONG_FIELDS})

    def row(self, index: int) -> Row:
        """Every column of one song but the latents."""
        shard, place = self._find(index)
        return {name: column[place].as_py() for name, column in shard.columns.items()}

    def cell(self, index: int, name: str) -> Any:
        """One column of one song; ``None`` where its shard is older than the column."""
        shard, place = self._find(index)
        column = shard.columns.get(name)
        return None if column is None else column[place].as_py()

    def latents(self, index: int, first: int = 0, frames: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """``tensors`` as arrays; ``frames=None`` takes all from ``first`` on."""
        mean, scale = self.tensors(index, first, int(self.frames[index]) - first if frames is None else frames)
        return mean.numpy(), scale.numpy()

    def tensors(self, index: int, first: int, frames: int) -> tuple[Tensor, Tensor]:
        """Posterior mean and scale of a piece of one song, (frames, channels) float16 each, at most to the song's end.

        They are views into the file, read on use, and not to be written to.
        """
        shard, place = self._find(index)
        start, end = int(shard.offsets[place]) + first, int(shard.offsets[place + 1])
        end = min(end, start + frames)
        return shard.mean[start:end], shard.scale[start:end]

    def check(self, wanted: Mapping[str, Any]) -> None:
        """Refuse a store whose settings differ from ``wanted``, for instance ``autoencoder_settings(...)``."""
        found = differences(self.settings, wanted)
        if found:
            raise ValueError(
                f"store={self.folder}: encoded otherwise ({'; '.join(found)}); preprocess the songs into a new store"
            )

    def __reduce__(self) -> tuple[type[LatentStore], tuple[Path]]:
        """Travel to other processes as a path, and be mapped anew there."""
        return LatentStore, (self.folder,)

    def _find(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"song {index} of {len(self)}")
        number = self._shard_of[index]
        shard = self._shards.get(number)
        if shard is None:
            shard = self._shards[number] = open_shard(self._paths[number])
        return shard, int(self._place_of[index])


def shard_paths(folder: Path) -> list[Path]:
    """The shards of the store in ``folder``, in order."""
    return sorted(folder.glob("songs-*.parquet"))


def write_shard(path: Path, rows: Sequence[Row], settings: Settings) -> None:
    """Write ``rows`` as one shard: aside, then renamed, so that a shard is whole or absent.

    ``mean`` and ``scale`` of a row are (frames, channels) arrays; they are stored as float16.
    """
    replace_shard(path, table(rows, settings))


def table(rows: Sequence[Row], settings: Settings) -> pa.Table:
    """``rows`` in the columns of a shard; what a row leaves out is null."""
    channels = int(settings["latent_channels"])
    wanted = schema(channels).with_metadata({"acestep": json.dumps(settings, sort_keys=True)})
    columns = [
        _latent_column([row[field.name] for row in rows], channels)
        if field.name in LATENTS
        else pa.array([row.get(field.name) for row in rows], field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(columns, schema=wanted)


def replace_shard(path: Path, content: pa.Table) -> None:
    """Put ``content`` in the place of the shard at ``path``."""
    with atomic(path) as aside:
        pq.write_table(content, aside, compression="zstd")


def read_rows(folder: Path) -> list[Row]:
    """Every row of a store but its latents, without opening it for training; none where it has no shard."""
    return [row for path in shard_paths(folder) for row in read_text(path).to_pylist()]


def content_hash(folder: str | Path) -> str:
    """A hash of every row of a store, whatever its order and its division into shards."""
    return hashlib.sha256("".join(sorted(_row_hashes(Path(folder)))).encode()).hexdigest()


def _row_hashes(folder: Path) -> Iterator[str]:
    store = LatentStore(folder)
    for index in range(len(store)):
        digest = hashlib.sha256(json.dumps(store.row(index), sort_keys=True).encode())
        for array in store.latents(index):
            digest.update(array.tobytes())
        yield digest.hexdigest()


def _latent_column(arrays: Iterable[np.ndarray], channels: int) -> pa.ListArray:
    arrays = [np.asarray(array, dtype=np.float16) for array in arrays]
    offsets = np.cumsum([0] + [len(array) for array in arrays], dtype=np.int32)
    values = pa.array(np.concatenate(arrays).reshape(-1))
    return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(values, channels))
