"""Where songs come from: a folder, a manifest, tar shards, or a Hugging Face data set, all as an iterator of songs."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from acestep.data.text import SongText, parse_fields, read_sidecars

SUFFIXES = frozenset(
    {
        ".aac", ".aif", ".aifc", ".aiff", ".ape", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp2", ".mp3", ".mp4",
        ".oga", ".ogg", ".opus", ".w64", ".wav", ".webm", ".wma", ".wv",
    }
)  # fmt: skip
"""Suffixes of audio files, also of formats that cannot be decoded, so that they are reported as skipped."""
AUDIO_COLUMN_NAMES = ("audio", "audio_path", "path", "file", "filename", "file_name", "location")
"""Names of a manifest's column with the audio's path; relative paths start at the manifest."""
MANIFESTS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
HUB = "hf://"
PARQUET_BATCH_ROWS = 8
"""Small, since a row may hold the audio of a song."""

_FUNCTION = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")

TableRow = dict[str, Any]


@dataclass(frozen=True)
class SourceSong:
    """One song of a source.

    Attributes:
        name: identifies the song in the store; the same in every run.
        audio: its file, or the bytes of one.
        read_text: reads its text, in whichever process needs it; raises ``ValueError`` where that fails.
    """

    name: str
    audio: Path | bytes
    read_text: Callable[[], SongText]


@dataclass(frozen=True)
class Source:
    """The songs of a source; ``total`` is ``None`` where their number is not known in advance."""

    songs: Iterator[SourceSong]
    total: int | None = None


def open_source(source: str | Path) -> Source:
    """The songs of ``source``.

    * A folder of audio files with sidecars (see ``data.text``). Rows of a ``metadata.jsonl``, ``metadata.json`` or any
      ``.csv`` in the folder, such as Key-BPM-Finder's, have precedence over sidecars.
    * A manifest: JSONL (also ``.gz``), JSON (a list, or upstream's ``{"metadata": ..., "samples": [...]}``), CSV, TSV
      or Parquet, with the audio's path (in Parquet also its bytes) and any fields of ``data.text.FIELD_NAMES``; other
      fields come from sidecars. A folder that holds only Parquet files is read as one manifest.
    * ``.tar`` shards, a file or a folder of them, in WebDataset's layout: files of one song share a name.
    * A data set that ``datasets.save_to_disk`` wrote or ``datasets.load_dataset`` reads: its folder, or
      ``hf://OWNER/NAME``, streamed; ``#SPLIT`` may follow.
    * ``module:function``: a function of a file of one's own, which yields :class:`SourceSong`.

    Raises:
        ValueError: no songs, or an unknown or broken format.
    """
    text = str(source)
    if text.startswith(HUB):
        return _open_hub(text)
    path = Path(source)
    if _FUNCTION.fullmatch(text) and not path.exists():
        return _open_function(text)
    if path.is_file():
        return _open_tars([path]) if path.suffix == ".tar" else _open_manifest(path)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _open_saved_dataset(path)
    if path.is_dir() and (shards := sorted(path.glob("*.tar"))):
        return _open_tars(shards)
    return _open_folder(path)


def find_songs(folder: str | Path, key: str = "source") -> list[Path]:
    """Every audio file under ``folder``, sorted by path; links are followed, hidden files and folders skipped.

    Folders that may not be read are in the list too, so that they are reported.

    Args:
        folder: searched to any depth.
        key: the setting that named the folder, for messages.

    Raises:
        ValueError: not a folder, or no audio file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{key}={folder}: not a folder; name the folder that holds the songs")
    paths = sorted(_walk(folder), key=lambda path: path.relative_to(folder).as_posix())
    if not paths:
        raise ValueError(f"{key}={folder}: no audio file in it; put songs there ({', '.join(sorted(SUFFIXES))})")
    return paths


def _walk(folder: Path) -> Iterator[Path]:
    visited, errors = set[str](), list[OSError]()
    for here, folders, files in os.walk(folder, onerror=errors.append, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:  # a link back, or a second link to one folder
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(here, name)
    yield from (Path(error.filename) for error in errors)


def _open_folder(folder: Path) -> Source:
    try:
        paths = find_songs(folder)
    except ValueError:
        if folder.is_dir() and (tables := sorted(folder.rglob("*.parquet"))):
            return _open_parquets(tables)
        raise
    rows = _folder_rows(folder)
    return Source((_folder_song(path, folder, rows) for path in paths), len(paths))


def _folder_song(path: Path, folder: Path, rows: Mapping[str, tuple[TableRow, str]]) -> SourceSong:
    # A name that is not UTF-8 is escaped.
    name = os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")
    row, where = rows.get(name) or rows.get(path.name) or (None, "")
    return SourceSong(name, path, partial(read_sidecars, path, row, where))


def _folder_rows(folder: Path) -> dict[str, tuple[TableRow, str]]:
    """Rows of the tables in ``folder`` itself and their places, by audio path."""
    tables = [path for name in ("metadata.jsonl", "metadata.json") if (path := folder / name).is_file()]
    rows = {}
    for table in [*tables, *sorted(folder.glob("*.csv"))]:
        for number, row in enumerate(_read_table(table)):
            audio = _row_audio(row)
            if isinstance(audio, str):
                rows[Path(audio).as_posix()] = row, _row_place(table, number)
    return rows


def _open_manifest(path: Path) -> Source:
    if not path.name.lower().endswith(MANIFESTS):
        raise ValueError(f"source={path}: not a manifest that is known here; use {', '.join(MANIFESTS)}, or a folder")
    if path.suffix.lower() == ".parquet":
        return _open_parquets([path])
    rows = _read_table(path)
    if not rows:
        raise ValueError(f"source={path}: no song in it")
    return Source((_row_song(row, number, path) for number, row in enumerate(rows)), len(rows))


def _open_parquets(paths: Sequence[Path]) -> Source:
    """Tables with paths of audio, or the audio itself, as on the Hub."""
    try:
        total = sum(pq.read_metadata(path).num_rows for path in paths)
    except pa.ArrowInvalid as error:
        raise ValueError(f"source={paths[0].parent}: not whole Parquet files ({error})") from error
    if not total:
        raise ValueError(f"source={paths[0]}: no song in it")
    rows = ((row, number, path) for path in paths for number, row in enumerate(_parquet_rows(path)))
    return Source((_row_song(*row) for row in rows), total)


def _parquet_rows(path: Path) -> Iterator[TableRow]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
            yield from batch.to_pylist()


def _row_place(table: Path, number: int) -> str:
    return f"{table.name}, song {number + 1}"


def _row_song(row: TableRow, number: int, table: Path, group: str = "") -> SourceSong:
    """The song of a row, whose audio is a path relative to ``table``, or bytes.

    Bytes are named by the row's ``number`` in ``group``, by default the table.
    """
    where, audio = _row_place(table, number), _row_audio(row)
    if audio is None:
        return _unusable(where, f"{where}: names no audio file; need one of {', '.join(AUDIO_COLUMN_NAMES)}")
    if isinstance(audio, str):
        path = table.parent / audio
        return SourceSong(Path(audio).as_posix(), path, partial(read_sidecars, path, row, where))
    stem = Path(audio.get("path") or str(row.get("id") or "song")).stem
    content = audio.get("bytes") or (Path(audio["path"]) if audio.get("path") else b"")
    fields = {key: value for key, value in row.items() if value is not audio}
    name = f"{group or table.stem}/{number:08d}-{stem}"
    return SourceSong(name, content, partial(parse_fields, fields, where, stem))


def _unusable(name: str, reason: str) -> SourceSong:
    """A song that is skipped with ``reason``."""
    return SourceSong(name, b"", partial(_raise, reason))


def _raise(reason: str) -> SongText:
    raise ValueError(reason)


def _row_audio(row: Mapping[str, Any]) -> str | dict[str, Any] | None:
    """The path of a row's audio, or a dictionary with its ``bytes`` and ``path``, as Hugging Face stores it."""
    for value in row.values():
        if isinstance(value, dict) and {"bytes", "path"} <= set(value):
            return value
    lower = {key.lower(): value for key, value in row.items() if key}
    paths = (lower.get(name) for name in AUDIO_COLUMN_NAMES)
    return next((path for path in paths if isinstance(path, str) and path.strip()), None)


def _read_table(path: Path) -> list[TableRow]:
    """The rows of a table in any format but Parquet."""
    name = path.name.lower()
    try:
        if name.endswith((".csv", ".tsv")):
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows: Any = list(csv.DictReader(file, delimiter="\t" if name.endswith(".tsv") else ","))
        elif name.endswith(".json"):
            rows = _json_rows(json.loads(path.read_text(encoding="utf-8-sig")))
        else:
            with (gzip.open if name.endswith(".gz") else open)(path, "rt", encoding="utf-8-sig") as file:
                rows = [json.loads(line) for line in file if line.strip()]
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"source={path}: cannot be read in the format of its suffix ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"source={path}: need a list of songs, each an object with the path of its audio")
    return rows


def _json_rows(content: Any) -> Any:
    """The songs of a JSON manifest; upstream's common metadata are added to each."""
    if not isinstance(content, dict):
        return content
    shared = content.get("metadata") or {}
    common = {"custom_tag": shared.get("custom_tag"), "instrumental": shared.get("all_instrumental") or None}
    samples = content.get("samples")
    if not isinstance(samples, list):
        return None
    return [common | {key: value for key, value in row.items() if value is not None} for row in samples]


def _open_tars(shards: list[Path]) -> Source:
    return Source(song for shard in shards for song in _tar_songs(shard))


def _tar_songs(shard: Path) -> Iterator[SourceSong]:
    """Songs of a tar file, in which the files of a song follow each other."""
    group: dict[str, bytes] = {}
    song = ""
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content is None:
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, dot, suffix = file.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if key != song:
                    yield from _tar_song(shard, song, group)
                    song, group = key, {}
                group[(dot + suffix).lower()] = content.read()
    except tarfile.TarError as error:
        yield _unusable(shard.name, f"{shard.name}: not a whole tar file ({error})")
    yield from _tar_song(shard, song, group)


def _tar_song(shard: Path, song: str, group: dict[str, bytes]) -> Iterator[SourceSong]:
    for suffix, content in group.items():
        if suffix in SUFFIXES:
            texts = {ending: part for ending, part in group.items() if ending not in SUFFIXES}
            name = f"{shard.stem}/{song}{suffix}"
            yield SourceSong(name, content, partial(_tar_text, name, texts))


def _tar_text(name: str, parts: Mapping[str, bytes]) -> SongText:
    try:
        texts = {ending: part.decode("utf-8-sig").strip() for ending, part in parts.items()}
        fields = json.loads(texts.get(".json", "{}"))
    except ValueError as error:
        raise ValueError(f"{name}: its text is not UTF-8, or its JSON not JSON ({error})") from error
    caption = texts.get(".caption.txt") or texts.get(".txt")
    lyrics = texts.get(".lrc") or texts.get(".lyrics.txt") or texts.get(".lyrics")
    sidecars = {key: text for key, text in (("caption", caption), ("lyrics", lyrics)) if text}
    return parse_fields(fields | sidecars, name, Path(name).stem)


def _open_saved_dataset(folder: Path) -> Source:
    import datasets  # an optional dependency, and slow to import

    return _open_splits(datasets.load_from_disk(str(folder)), "", folder)


def _open_function(text: str) -> Source:
    module, _, name = text.partition(":")
    try:
        songs = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"source={text}: {error}; need MODULE:FUNCTION of a file in the current directory") from error
    return Source(iter(songs()))


def _open_hub(text: str) -> Source:
    """A data set of the Hub, or a local folder that ``load_dataset`` reads, streamed."""
    import datasets  # an optional dependency, and slow to import

    name, _, split = text.removeprefix(HUB).partition("#")
    return _open_splits(datasets.load_dataset(name, split=split or None, streaming=True), split, Path(name))


def _open_splits(dataset: Any, split: str, where: Path) -> Source:
    """All splits of ``dataset``, or the one of this name that it is."""
    parts = dataset if isinstance(dataset, dict) else {split: dataset}
    total = sum(map(len, parts.values())) if all(hasattr(part, "__len__") for part in parts.values()) else None
    return Source((song for split, part in parts.items() for song in _dataset_songs(part, split, where)), total)


def _dataset_songs(part: Any, split: str, where: Path) -> Iterator[SourceSong]:
    """Songs of a split; files that it lists more than once, as ACE-Step v1 lengthens epochs, are given once."""
    import datasets  # an optional dependency, and slow to import

    paths = set[str]()
    for column, kind in (part.features or {}).items():
        if isinstance(kind, datasets.Audio):
            # Decoded by this package like any other file, so that the same formats are supported everywhere.
            part = part.cast_column(column, datasets.Audio(decode=False))
    for number, row in enumerate(part):
        song = _row_song({"split": split, **row}, number, where, split or "songs")
        if isinstance(_row_audio(row), str):
            if song.name in paths:
                continue
            paths.add(song.name)
        yield song
