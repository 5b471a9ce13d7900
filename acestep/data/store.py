"""The latent store: Parquet shards of encoded songs, made by one autoencoder, read through memory-mapped copies.

A store is a folder. ``songs-00000.parquet`` and so on hold one row per song, in the columns of ``schema``, and can be
read by ``datasets.load_dataset``. ``store.json`` holds the settings under which every row was encoded. Latents are
float16: 11 bits, a relative rounding error of at most 0.0005.

Parquet has no random access, so ``.mirror/`` holds uncompressed Arrow copies, which are mapped into memory: an index of
all songs, written when the store is first opened, and one file per shard, written when its first song is read. They
are written anew when a shard changes, and may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from acestep.files import atomic, tensors_hash
from acestep.songs import Song
from acestep.types import Autoencoder

FORMAT = 1
SETTINGS_FILE = "store.json"
DEFAULT_SETTINGS = {"loudness": "none"}
"""Values of settings that older stores lack."""
MIRROR = ".mirror"
LATENTS = ("mean", "scale")
INDEXED = ("source", "sha256", "seconds", "frames", "split")
SHARD, PLACE = ".shard", ".place"
"""Further columns of the index: the number of a song's shard, and its row there."""
SONG_FIELDS = ("caption", "lyrics", "language", "seconds", "bpm", "key", "time_signature")
TEXT_COLUMNS = {
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
"""``data.text.SongText``; can change without encoding the audio again."""
AUDIO_COLUMNS = {
    "loudness": pa.float32(),
    "peak": pa.float32(),
    "clipped": pa.float32(),
    "silence": pa.float32(),
    "outline": pa.string(),
}
"""``data.audio_checks.AudioMeasures``; null in older stores."""

Row = dict[str, Any]
Settings = dict[str, Any]
IntArray = NDArray[np.integer[Any]]


def autoencoder_settings(autoencoder: Autoencoder) -> Settings:
    """Settings that identify ``autoencoder`` as an encoder: class, rates, any ``config``, a hash of its weights.

    If it has a part named ``encoder``, only that part's weights are hashed, since a decoder that is trained further
    does not change latents. Weights are hashed as float32, so that the dtype of a copy does not matter.
    """
    if not isinstance(autoencoder, nn.Module):
        raise TypeError(f"need an nn.Module to hash its weights, got {type(autoencoder).__name__}")
    encoder = getattr(autoencoder, "encoder", autoencoder)
    config = getattr(autoencoder, "config", None)
    values = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
    return {
        "class": type(autoencoder).__name__,
        "sample_rate": autoencoder.sample_rate,
        "hop": autoencoder.hop,
        "latent_channels": autoencoder.latent_channels,
        "config": json.loads(json.dumps(values)),  # tuples become lists, as when read from a file
        "weights": tensors_hash(encoder.state_dict())[:16],
    }


def _settings_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One phrase for each setting of ``wanted`` that has another value in ``stored``."""
    phrases = []
    for key, value in wanted.items():
        if isinstance(value, Mapping):
            phrases += [f"{key}.{phrase}" for phrase in _settings_differences(stored.get(key, {}), value)]
        elif stored.get(key) != value:
            phrases.append(f"{key} is {stored.get(key)!r}, not {value!r}")
    return phrases


def read_settings(folder: Path) -> Settings:
    """The settings of the store in ``folder``. Raises ``ValueError`` if there is none."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise ValueError(
            f"store={folder}: not a latent store; make one with `python -m acestep preprocess SONGS {folder}`"
        )
    settings: Settings = json.loads(path.read_text(encoding="utf-8"))
    return DEFAULT_SETTINGS | settings


def write_settings(folder: Path, settings: Settings) -> None:
    """Write the settings of the store in ``folder``, which is created if needed."""
    with atomic(folder / SETTINGS_FILE) as aside:
        aside.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_settings(store: Path, wanted: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where settings of the store differ from ``wanted``, such as ``autoencoder_settings()``."""
    phrases = _settings_differences(read_settings(store), wanted)
    if phrases:
        raise ValueError(
            f"store={store}: holds songs encoded otherwise ({'; '.join(phrases)}); name a new folder, or preprocess "
            "the songs into one"
        )


def schema(channels: int) -> pa.Schema:
    """The columns of a shard whose latents have ``channels`` channels."""
    latents = pa.list_(pa.list_(pa.float16(), channels))
    identity = {"source": pa.string(), "sha256": pa.string(), "seconds": pa.float64(), "frames": pa.int32()}
    columns = identity | TEXT_COLUMNS | AUDIO_COLUMNS | dict.fromkeys(LATENTS, latents)
    return pa.schema(list(columns.items()))


class LatentStore:
    """A store, opened for reading. Opening maps the index and reads no latents.

    Songs are sorted by name, whatever the order in which they were added, so that training does not depend on it.
    Pickled as its path, and mapped again in the other process.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open the store in ``folder``. Raises ``ValueError`` if there is none, or no song in it."""
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        self._paths = shard_paths(self.folder)
        if not self._paths:
            raise ValueError(f"store={folder}: no songs in it; run `python -m acestep preprocess` on a folder of songs")
        self._index = _open_index(self._paths)
        self._shard_of, self._place_of = (self._index.column(name).to_numpy() for name in (SHARD, PLACE))
        self._shards: dict[int, Shard] = {}

    def __len__(self) -> int:
        return len(self._shard_of)

    def __reduce__(self) -> tuple[type[LatentStore], tuple[Path]]:
        return LatentStore, (self.folder,)

    @cached_property
    def frames(self) -> IntArray:
        """Latent frames of every song, (songs,)."""
        frames: IntArray = self._index.column("frames").to_numpy()
        return frames

    @cached_property
    def sha256(self) -> list[str]:
        """Hash of the audio file of every song."""
        return self.column("sha256")

    @property
    def frames_per_second(self) -> float:
        return float(self.settings["sample_rate"]) / float(self.settings["hop"])

    @property
    def fingerprint(self) -> str:
        """A short hash of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    def column(self, name: str) -> list[Any]:
        """One column of every song; ``None`` where a shard is older than the column."""
        if name in self._index.column_names:
            return self._index.column(name).to_pylist()
        parts = [read_columns(path, [name, "frames"]) for path in self._paths]
        values = [part.column(name).to_pylist() if name in part.column_names else [None] * len(part) for part in parts]
        return [values[shard][place] for shard, place in zip(self._shard_of, self._place_of, strict=True)]

    def song(self, index: int) -> Song:
        """The text of one song; ``seconds`` is its full duration."""
        shard, place = self._find(index)
        return Song(**{name: shard.columns[name][place].as_py() for name in SONG_FIELDS})

    def cell(self, index: int, name: str) -> Any:
        """One column of one song; ``None`` where its shard is older than the column."""
        shard, place = self._find(index)
        column = shard.columns.get(name)
        return None if column is None else column[place].as_py()

    def latents(self, index: int, first: int = 0, frames: int | None = None) -> tuple[Tensor, Tensor]:
        """Posterior mean and scale of a song from frame ``first`` on, (frames, channels), float16.

        At most ``frames`` frames. They are views of the mapped file, and must not be written to.
        """
        shard, place = self._find(index)
        start, end = int(shard.offsets[place]) + first, int(shard.offsets[place + 1])
        end = end if frames is None else min(end, start + frames)
        return shard.mean[start:end], shard.scale[start:end]

    def check(self, wanted: Mapping[str, Any]) -> None:
        """See ``check_settings``."""
        check_settings(self.folder, wanted)

    def _find(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"song {index} of {len(self)}")
        number = self._shard_of[index]
        shard = self._shards.get(number)
        if shard is None:
            shard = self._shards[number] = Shard.open(self._paths[number])
        return shard, int(self._place_of[index])


def shard_paths(folder: Path) -> list[Path]:
    """The shards of the store in ``folder``, in order."""
    return sorted(folder.glob("songs-*.parquet"))


def write_shard(path: Path, content: pa.Table) -> None:
    """Write ``content`` as the shard at ``path``; atomic."""
    with atomic(path) as aside:
        pq.write_table(content, aside, compression="zstd")


def shard_table(rows: Sequence[Row], settings: Settings) -> pa.Table:
    """``rows`` in the columns of a shard; missing values are null.

    ``mean`` and ``scale`` of a row are (frames, channels) arrays, stored as float16.
    """
    channels = int(settings["latent_channels"])
    columns = schema(channels).with_metadata({"acestep": json.dumps(settings, sort_keys=True)})
    values = [
        _latent_column([row[field.name] for row in rows], channels)
        if field.name in LATENTS
        else pa.array([row.get(field.name) for row in rows], field.type)
        for field in columns
    ]
    return pa.Table.from_arrays(values, schema=columns)


def _latent_column(arrays: Iterable[NDArray[Any]], channels: int) -> pa.ListArray:
    arrays = [np.asarray(array, dtype=np.float16) for array in arrays]
    offsets = np.cumsum([0] + [len(array) for array in arrays], dtype=np.int32)
    values = pa.array(np.concatenate(arrays).reshape(-1))
    return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(values, channels))


def read_rows(folder: Path) -> list[Row]:
    """Every row of a store without its latents, read from the shards; empty where there is none."""
    return [row for path in shard_paths(folder) for row in read_columns(path).to_pylist()]


def read_columns(path: Path, names: Sequence[str] | None = None) -> pa.Table:
    """The columns ``names`` of a shard, those that it has; all but the latents by default."""
    with pq.ParquetFile(path) as file:
        present = file.schema_arrow.names
        wanted = [n for n in present if n not in LATENTS] if names is None else [n for n in names if n in present]
        return file.read(wanted, use_threads=False)


@dataclass(frozen=True)
class Shard:
    """One shard, memory-mapped. ``offsets`` count frames; its song ``i`` is ``mean[offsets[i]:offsets[i + 1]]``."""

    columns: dict[str, pa.Array]
    offsets: IntArray
    mean: Tensor
    scale: Tensor

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Map the Arrow copy of the shard at ``path``."""
        mirror = path.parent / MIRROR / f"{path.stem}-{_file_version(path)}.arrow"
        table = _map_table(mirror, f"{path.stem}-*.arrow", lambda: pq.read_table(path))
        columns = {name: table.column(name).chunk(0) for name in table.column_names}  # faster to index than a table
        mean, scale = (columns.pop(name) for name in LATENTS)
        return cls(columns, mean.offsets.to_numpy(), _flat_frames(mean), _flat_frames(scale))


def _flat_frames(column: pa.ListArray) -> Tensor:
    """All frames of all songs, (frames, channels)."""
    frames = column.values
    array = frames.values.to_numpy(zero_copy_only=True).reshape(-1, frames.type.list_size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _open_index(paths: Sequence[Path]) -> pa.Table:
    """``INDEXED`` of all songs of the shards ``paths``, sorted by name, with ``SHARD`` and ``PLACE``."""
    versions = "\n".join(f"{path.name} {_file_version(path)}" for path in paths)
    name = f"index-{hashlib.sha256(versions.encode()).hexdigest()[:16]}.arrow"
    return _map_table(paths[0].parent / MIRROR / name, "index-*.arrow", lambda: _make_index(paths))


def _make_index(paths: Sequence[Path]) -> pa.Table:
    parts = [read_columns(path, INDEXED).replace_schema_metadata() for path in paths]
    counts = [len(part) for part in parts]
    index = pa.concat_tables(parts, promote_options="default")
    index = index.append_column(SHARD, pa.array(np.repeat(np.arange(len(parts), dtype=np.int32), counts)))
    index = index.append_column(PLACE, pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in counts])))
    return index.combine_chunks().sort_by("source")


def _file_version(path: Path) -> str:
    state = path.stat()
    return f"{state.st_size:x}-{state.st_mtime_ns:x}"


def _map_table(path: Path, pattern: str, make: Callable[[], pa.Table]) -> pa.Table:
    """Map the Arrow file at ``path``; if there is none, write it first and delete outdated ones, by ``pattern``."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with (path.parent / ".lock").open("w") as file:  # all processes of a loader need the same file at once
            fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists():
                for outdated in [*path.parent.glob(pattern), *path.parent.glob(".[0-9]*")]:
                    outdated.unlink(missing_ok=True)
                write_arrow(path, make().combine_chunks())
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write an uncompressed Arrow file; atomic."""
    with atomic(path) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
