"""Where songs come from: a folder, a manifest, tar shards, or a Hugging Face data set, all as a stream of items."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from acestep.data.sources import SUFFIXES, describe, find_songs
from acestep.data.words import Description, described

AUDIO = ("audio", "audio_path", "path", "file", "filename", "file_name", "location")
"""Of a manifest, the names that the column with the audio's path goes by; relative paths start at the manifest."""
MANIFESTS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
HUB = "hf://"
ROWS_AT_ONCE = 8
"""Read from a Parquet file at a time: a row may hold a whole song."""


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
      or Parquet, with the audio's path (in Parquet also its bytes) and any fields of ``data.words``; what a row leaves
      out may stand beside the audio, as in a folder. A folder of nothing but Parquet is read as one.
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
    try:
        paths = find_songs(folder)
    except ValueError:
        if folder.is_dir() and (tables := sorted(folder.rglob("*.parquet"))):
            return _parquets(tables)
        raise
    known = _rows_beside(folder)
    items = (_file_item(path, _name(path, folder), known) for path in paths)
    return Source(items, len(paths))


def _file_item(path: Path, name: str, known: Mapping[str, tuple[dict[str, Any], str]]) -> Item:
    row, where = known.get(name) or known.get(path.name) or (None, "")
    return Item(name, path, partial(describe, path, row, where))


def _rows_beside(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Rows of the tables in ``folder`` itself, by the file that they name, and where they stand."""
    tables = [path for name in ("metadata.jsonl", "metadata.json") if (path := folder / name).is_file()]
    found = {}
    for table in [*tables, *sorted(folder.glob("*.csv"))]:
        for number, row in enumerate(_rows(table)):
            audio = _audio_of(row)
            if isinstance(audio, str):
                found[Path(audio).as_posix()] = row, _place(table, number)
    return found


def _manifest(path: Path) -> Source:
    if not path.name.lower().endswith(MANIFESTS):
        raise ValueError(f"source={path}: not a manifest that is known here; use {', '.join(MANIFESTS)}, or a folder")
    if path.suffix.lower() == ".parquet":
        return _parquets([path])
    rows = _rows(path)
    if not rows:
        raise ValueError(f"source={path}: no song in it")
    return Source((_row_item(row, number, path) for number, row in enumerate(rows)), len(rows))


def _parquets(paths: Sequence[Path]) -> Source:
    """Tables of paths, or of audio itself, as the Hub keeps data sets."""
    try:
        total = sum(pq.read_metadata(path).num_rows for path in paths)
    except pa.ArrowInvalid as error:
        raise ValueError(f"source={paths[0].parent}: not whole Parquet files ({error})") from error
    if not total:
        raise ValueError(f"source={paths[0]}: no song in it")
    return Source((item for path in paths for item in _parquet_items(path)), total)


def _parquet_items(path: Path) -> Iterator[Item]:
    with pq.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield _row_item(row, number, path)
                number += 1


def _place(table: Path, number: int) -> str:
    return f"{table.name}, song {number + 1}"


def _row_item(row: dict[str, Any], number: int, table: Path, group: str = "") -> Item:
    """The song of a row, whose audio is a path from where ``table`` lies, or bytes.

    Bytes have no name, but for the row's ``number`` in ``group``.
    """
    where, audio = _place(table, number), _audio_of(row)
    if audio is None:
        return Item(where, b"", partial(_refused, f"{where}: names no audio file; need one of {', '.join(AUDIO)}"))
    if isinstance(audio, str):
        path = table.parent / audio
        return Item(Path(audio).as_posix(), path, partial(describe, path, row, where))
    stem = Path(audio.get("path") or str(row.get("id") or "song")).stem
    content = audio.get("bytes") or (Path(audio["path"]) if audio.get("path") else b"")
    facts = {key: value for key, value in row.items() if value is not audio}
    return Item(f"{group or table.stem}/{number:08d}-{stem}", content, partial(described, facts, where, stem))


def _refused(reason: str) -> Description:
    raise ValueError(reason)


def _audio_of(row: Mapping[str, Any]) -> str | dict[str, Any] | None:
    """The path of a row's audio, or, in Hugging Face's form, its ``bytes`` and ``path``."""
    embedded = next(
        (value for value in row.values() if isinstance(value, dict) and {"bytes", "path"} <= set(value)), None
    )
    if embedded is not None:
        return embedded
    lower = {key.lower(): value for key, value in row.items() if key}
    return next((value for name in AUDIO if isinstance(value := lower.get(name), str) and value.strip()), None)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table of any known kind but Parquet."""
    name = path.name.lower()
    try:
        if name.endswith((".csv", ".tsv")):
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows: Any = list(csv.DictReader(file, delimiter="\t" if name.endswith(".tsv") else ","))
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
    return Source((item for split, part in parts.items() for item in _dataset_items(part, split, folder)), total)


def _hub(text: str) -> Source:
    """A data set of the Hub, or a local folder that ``load_dataset`` reads, streamed."""
    import datasets  # an optional dependency, and slow to import

    name, _, split = text.removeprefix(HUB).partition("#")
    found = datasets.load_dataset(name, split=split or None, streaming=True)
    parts = found if isinstance(found, dict) else {split: found}
    return Source(item for split, part in parts.items() for item in _dataset_items(part, split, Path(name)))


def _dataset_items(part: Any, split: str, where: Path) -> Iterator[Item]:
    """Songs of a split; where it names files more than once, as ACE-Step v1 makes epochs, once each."""
    import datasets  # an optional dependency, and slow to import

    seen = set[str]()
    for column, kind in (part.features or {}).items():
        if isinstance(kind, datasets.Audio):
            # Decoded here like any other file, so that one decoder decides what can be read.
            part = part.cast_column(column, datasets.Audio(decode=False))
    for number, row in enumerate(part):
        item = _row_item({"split": split, **row}, number, where, split or "songs")
        if isinstance(_audio_of(row), str):
            if item.name in seen:
                continue
            seen.add(item.name)
        yield item
