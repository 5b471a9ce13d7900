"""Where songs come from: a folder, a manifest, tar shards, or a Hugging Face data set, all as a stream of items."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from acestep.data.sources import SUFFIXES, describe, find_songs
from acestep.data.words import Description, described

AUDIO = ("audio", "audio_path", "path", "file", "filename", "file_name", "location")
"""Of a manifest, the names that the column with the audio's path goes by; relative paths start at the manifest."""
MANIFESTS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
HUB = "hf://"


@dataclass(frozen=True)
class Item:
    """One song of a source.

    Attributes:
        name: what the store knows it by; stays the same from run to run.
        audio: its file, or the bytes of one.
        words: makes the record, in whichever process needs it; raises ``ValueError`` where it cannot.
    """

    name: str
    audio: Path | bytes
    words: Callable[[], Description]


@dataclass(frozen=True)
class Source:
    """Songs to be gone through; ``total`` is ``None`` where their number shows only at the end."""

    items: Iterator[Item]
    total: int | None = field(default=None)


def open_source(source: str | Path) -> Source:
    """The songs of ``source``.

    * A folder of audio files with sidecars (see ``data.sources``); with a ``metadata.jsonl``, ``.json`` or ``.csv``, or
      a Key-BPM-Finder ``.csv``, in it, their rows go before the sidecars.
    * A manifest: JSONL (also ``.gz``), JSON (a list, or upstream's ``{"metadata": ..., "samples": [...]}``), CSV, TSV
      or Parquet, with the audio's path and any fields of ``data.words``.
    * ``.tar`` shards, a file or a folder of them: files of one song share a name, as WebDataset lays them out.
    * A data set that ``datasets.save_to_disk`` or ``datasets.load_dataset`` knows: its folder, or ``hf://OWNER/NAME``,
      streamed; a split may follow after ``#``.
    """
    text = str(source)
    if text.startswith(HUB):
        return _hub(text)
    path = Path(source)
    if path.is_file():
        return _tars([path]) if path.suffix == ".tar" else _manifest(path)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved(path)
    if path.is_dir() and (shards := sorted(path.glob("*.tar"))):
        return _tars(shards)
    return _folder(path)


def _folder(folder: Path) -> Source:
    paths = find_songs(folder)
    known = _rows_beside(folder)
    items = [
        Item(name := _name(path, folder), path, partial(describe, path, known.get(name) or known.get(path.name)))
        for path in paths
    ]
    return Source(iter(items), len(items))


def _rows_beside(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of the tables in ``folder`` itself, by the file that they name."""
    tables = [path for name in ("metadata.jsonl", "metadata.json") if (path := folder / name).is_file()]
    found = {}
    for table in [*tables, *sorted(folder.glob("*.csv"))]:
        for row in _rows(table):
            audio = _audio_of(row)
            if audio is not None:
                found[Path(audio).as_posix()] = row
    return found


def _manifest(path: Path) -> Source:
    if not path.name.lower().endswith(MANIFESTS):
        raise ValueError(f"source={path}: not a manifest that is known here; use {', '.join(MANIFESTS)}, or a folder")
    rows = _rows(path)
    if not rows:
        raise ValueError(f"source={path}: no song in it")
    return Source((_row_item(row, number, path) for number, row in enumerate(rows)), len(rows))


def _row_item(row: dict[str, Any], number: int, manifest: Path) -> Item:
    audio = _audio_of(row)
    where = f"{manifest.name}, song {number + 1}"
    if audio is None:
        return Item(where, b"", partial(_refused, f"{where}: names no audio file; need one of {', '.join(AUDIO)}"))
    path = manifest.parent / audio
    return Item(Path(audio).as_posix(), path, partial(described, row, where, path.stem))


def _refused(reason: str) -> Description:
    raise ValueError(reason)


def _audio_of(row: Mapping[str, Any]) -> str | None:
    lower = {key.lower(): value for key, value in row.items() if key}
    return next((value for name in AUDIO if isinstance(value := lower.get(name), str) and value.strip()), None)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table of any known kind."""
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            rows: Any = pq.read_table(path).to_pylist()
        elif name.endswith((".csv", ".tsv")):
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t" if name.endswith(".tsv") else ","))
        elif name.endswith(".json"):
            rows = _samples(json.loads(path.read_text(encoding="utf-8-sig")))
        else:
            with (
                gzip.open(path, "rt", encoding="utf-8-sig")
                if name.endswith(".gz")
                else path.open(encoding="utf-8-sig") as file
            ):
                rows = [json.loads(line) for line in file if line.strip()]
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"source={path}: cannot be read as its suffix says ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"source={path}: need a list of songs, each an object with the path of its audio")
    return rows


def _samples(content: Any) -> Any:
    """The songs of a JSON manifest; what upstream's says of all of them stands in each."""
    if not isinstance(content, dict):
        return content
    shared = content.get("metadata") or {}
    common = {"custom_tag": shared.get("custom_tag"), "instrumental": shared.get("all_instrumental") or None}
    samples = content.get("samples")
    if not isinstance(samples, list):
        return None
    return [{**common, **{key: value for key, value in row.items() if value is not None}} for row in samples]


def _tars(shards: list[Path]) -> Source:
    return Source(item for shard in shards for item in _tar_items(shard))


def _tar_items(shard: Path) -> Iterator[Item]:
    """Songs of a tar file, whose parts follow each other."""
    group: dict[str, bytes] = {}
    song = ""
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, dot, suffix = file.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if key != song:
                    yield from _tar_item(shard, song, group)
                    song, group = key, {}
                group[(dot + suffix).lower()] = tar.extractfile(member).read()  # type: ignore[union-attr]
    except tarfile.TarError as error:
        yield Item(shard.name, b"", partial(_refused, f"{shard.name}: not a whole tar file ({error})"))
    yield from _tar_item(shard, song, group)


def _tar_item(shard: Path, song: str, group: dict[str, bytes]) -> Iterator[Item]:
    for suffix, content in group.items():
        if suffix in SUFFIXES:
            texts = {ending: part for ending, part in group.items() if ending not in SUFFIXES}
            name = f"{shard.stem}/{song}{suffix}"
            yield Item(name, content, partial(_tar_words, name, texts))


def _tar_words(name: str, parts: Mapping[str, bytes]) -> Description:
    try:
        texts = {ending: part.decode("utf-8-sig").strip() for ending, part in parts.items()}
        facts = json.loads(texts.get(".json", "{}"))
    except ValueError as error:
        raise ValueError(f"{name}: its text is not UTF-8, or its JSON not JSON ({error})") from error
    said = {"caption": texts.get(".caption.txt") or texts.get(".txt"), "lyrics": texts.get(".lrc")}
    said["lyrics"] = said["lyrics"] or texts.get(".lyrics.txt") or texts.get(".lyrics")
    return described({**facts, **{key: text for key, text in said.items() if text}}, name, Path(name).stem)


def _name(path: Path, folder: Path) -> str:
    """Relative to the folder; bytes that are no UTF-8 are written out."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")


def _saved(folder: Path) -> Source:
    """A data set on this disk."""
    import datasets  # an optional dependency, and slow to import

    found = datasets.load_from_disk(str(folder))
    parts = found if isinstance(found, dict) else {"": found}
    total = sum(len(part) for part in parts.values())
    return Source((item for split, part in parts.items() for item in _dataset_items(part, split, str(folder))), total)


def _hub(text: str) -> Source:
    """A data set of the Hub, or a local folder that ``load_dataset`` reads, streamed."""
    import datasets  # an optional dependency, and slow to import

    name, _, split = text.removeprefix(HUB).partition("#")
    found = datasets.load_dataset(name, split=split or None, streaming=True)
    parts = found if isinstance(found, dict) else {split: found}
    return Source(item for split, part in parts.items() for item in _dataset_items(part, split, name))


def _dataset_items(part: Any, split: str, where: str) -> Iterator[Item]:
    import datasets  # an optional dependency, and slow to import

    column = next((name for name, kind in part.features.items() if isinstance(kind, datasets.Audio)), None)
    if column is None:
        raise ValueError(f"source={where}: no column of audio in it ({', '.join(part.features)})")
    # Decoded here like any other file, so that one decoder decides what can be read.
    for number, row in enumerate(part.cast_column(column, datasets.Audio(decode=False))):
        audio = row.pop(column) or {}
        stem = Path(audio.get("path") or str(row.get("id") or "song")).stem
        name = f"{split or 'songs'}/{number:08d}-{stem}"
        content = audio.get("bytes") or (Path(audio["path"]) if audio.get("path") else b"")
        yield Item(name, content, partial(described, {"split": split, **row}, name, stem))
