"""The latent store: Parquet shards of encoded songs, made by one autoencoder, read through a memory-mapped mirror.

A store is a folder. ``songs-00000.parquet`` and so on hold one row per song, in the columns of ``SCHEMA``, and are read
by plain ``datasets.load_dataset``. ``store.json`` states the settings under which every row was encoded. Latents are
float16: 11 bits, a relative rounding error of at most 0.0005. ``.mirror/`` holds each shard again as an uncompressed
Arrow file, made on first reading, because Parquet cannot be read at random; it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from acestep.files import atomic
from acestep.types import Autoencoder, Song

FORMAT = 1
SETTINGS_FILE = "store.json"
LATENTS = ("mean", "scale")
SONG_FIELDS = ("caption", "lyrics", "language", "seconds", "bpm", "key", "time_signature")

Row = dict[str, Any]
Settings = dict[str, Any]


def schema(channels: int) -> pa.Schema:
    """The columns of a shard whose latents have ``channels`` numbers a frame."""
    latents = pa.list_(pa.list_(pa.float16(), channels))
    return pa.schema(
        [
            ("source", pa.string()),
            ("sha256", pa.string()),
            ("seconds", pa.float64()),
            ("frames", pa.int32()),
            ("caption", pa.string()),
            ("lyrics", pa.string()),
            ("language", pa.string()),
            ("bpm", pa.int32()),
            ("key", pa.string()),
            ("time_signature", pa.string()),
            ("truth", pa.string()),
            ("mean", latents),
            ("scale", latents),
        ]
    )


def autoencoder_settings(autoencoder: Autoencoder) -> Settings:
    """What identifies ``autoencoder``: its class, its rates, its ``config`` if it has one, a hash of its weights.

    Weights are hashed as float32, by name, so that the precision of a copy on a device does not matter where it holds
    the same numbers.
    """
    if not isinstance(autoencoder, nn.Module):
        raise TypeError(f"need an nn.Module to hash its weights, got {type(autoencoder).__name__}")
    digest = hashlib.sha256()
    for name, tensor in sorted(autoencoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    config = getattr(autoencoder, "config", None)
    return {
        "class": type(autoencoder).__name__,
        "sample_rate": autoencoder.sample_rate,
        "hop": autoencoder.hop,
        "latent_channels": autoencoder.latent_channels,
        "config": json.loads(json.dumps(asdict(config))) if is_dataclass(config) else {},
        "weights": digest.hexdigest()[:16],
    }


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One phrase for each setting of ``wanted`` that ``stored`` has otherwise."""
    found = []
    for key, value in wanted.items():
        if isinstance(value, Mapping):
            found += [f"{key}.{phrase}" for phrase in differences(stored.get(key, {}), value)]
        elif stored.get(key) != value:
            found.append(f"{key} is {stored.get(key)!r}, not {value!r}")
    return found


@dataclass(frozen=True)
class Shard:
    """One shard, memory-mapped. ``offsets`` count frames; song ``i`` is ``mean[offsets[i]:offsets[i + 1]]``."""

    text: pa.Table
    offsets: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


class LatentStore:
    """A store, opened for reading. Opening maps files and reads no latents."""

    def __init__(self, folder: str | Path) -> None:
        """Open the store in ``folder``. Raises ``ValueError`` if there is none, or nothing in it."""
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        paths = shard_paths(self.folder)
        if not paths:
            raise ValueError(f"store={folder}: no songs in it; run `python -m acestep preprocess` on a folder of songs")
        self._shards = [_open(path) for path in paths]
        self._starts = np.cumsum([0] + [len(shard.offsets) - 1 for shard in self._shards])

    def __len__(self) -> int:
        """How many songs."""
        return int(self._starts[-1])

    @cached_property
    def frames(self) -> np.ndarray:
        """Latent frames of every song, (songs,)."""
        return np.concatenate([np.diff(shard.offsets) for shard in self._shards])

    @cached_property
    def sha256(self) -> list[str]:
        """Hash of the audio file of every song."""
        return [digest for shard in self._shards for digest in shard.text.column("sha256").to_pylist()]

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
        row = self.row(index)
        return Song(**{name: row[name] for name in SONG_FIELDS})

    def row(self, index: int) -> Row:
        """Every column of one song but the latents."""
        shard, at = self._find(index)
        return {name: shard.text.column(name)[at].as_py() for name in shard.text.column_names}

    def latents(self, index: int, first: int = 0, frames: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and scale of one song, (frames, channels) float16 each: views into the file, read on use."""
        shard, at = self._find(index)
        start, end = int(shard.offsets[at]) + first, int(shard.offsets[at + 1])
        if frames is not None:
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
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shards[shard], index - int(self._starts[shard])


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short hash of ``settings``."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_settings(folder: Path) -> Settings:
    """The settings of the store in ``folder``."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise ValueError(
            f"store={folder}: not a latent store; make one with `python -m acestep preprocess SONGS {folder}`"
        )
    settings: Settings = json.loads(path.read_text(encoding="utf-8"))
    return settings


def write_settings(folder: Path, settings: Settings) -> None:
    """State ``settings`` for the store in ``folder``, which is made if it is not there."""
    with atomic(folder / SETTINGS_FILE) as aside:
        aside.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def shard_paths(folder: Path) -> list[Path]:
    """The shards of the store in ``folder``, in order."""
    return sorted(folder.glob("songs-*.parquet"))


def write_shard(path: Path, rows: Sequence[Row], settings: Settings) -> None:
    """Write ``rows`` as one shard: aside, then renamed, so that a shard is whole or absent.

    ``mean`` and ``scale`` of a row are (frames, channels) arrays; they are stored as float16.
    """
    channels = int(settings["latent_channels"])
    wanted = schema(channels).with_metadata({"acestep": json.dumps(settings, sort_keys=True)})
    columns = [
        _latent_column([row[field.name] for row in rows], channels)
        if field.name in LATENTS
        else pa.array([row[field.name] for row in rows], field.type)
        for field in wanted
    ]
    replace_shard(path, pa.Table.from_arrays(columns, schema=wanted))


def replace_shard(path: Path, table: pa.Table) -> None:
    """Put ``table`` in the place of the shard at ``path``."""
    with atomic(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def read_text(path: Path) -> pa.Table:
    """The columns of the shard at ``path`` but the latents."""
    names = [name for name in pq.read_schema(path).names if name not in LATENTS]
    return pq.read_table(path, columns=names)


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


def _open(path: Path) -> Shard:
    state = path.stat()
    mirror = path.parent / ".mirror" / f"{path.stem}-{state.st_size:x}-{state.st_mtime_ns:x}.arrow"
    if not mirror.exists():
        _mirror(path, mirror)
    table = pa.ipc.open_file(pa.memory_map(str(mirror))).read_all()
    mean, scale = (table.column(name).chunk(0) for name in LATENTS)
    return Shard(table.drop_columns(list(LATENTS)), mean.offsets.to_numpy(), _frames_of(mean), _frames_of(scale))


def _mirror(path: Path, mirror: Path) -> None:
    mirror.parent.mkdir(exist_ok=True)
    for stale in mirror.parent.glob(f"{path.stem}-*.arrow"):
        stale.unlink(missing_ok=True)
    table = pq.read_table(path).combine_chunks()
    with atomic(mirror) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _frames_of(column: pa.ListArray) -> np.ndarray:
    frames = column.values
    return frames.values.to_numpy(zero_copy_only=True).reshape(-1, frames.type.list_size)
