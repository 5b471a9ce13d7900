"""Lists of songs in files (JSONL, YAML, CSV, Parquet), with every value checked."""

from __future__ import annotations

import csv
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from acestep.songs.song import AdapterUse, Request, error_line, shorten

FORMATS = (".jsonl", ".yaml", ".yml", ".csv", ".parquet")
NAME_BYTES = 200
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
LARGEST = 2**63


@dataclass(frozen=True)
class SongListEntry:
    """One entry of a song list: a request, or an error.

    Attributes:
        number: position in the list, from 1.
        request: ``None`` if the entry is invalid.
        error: the reason, if it is invalid.
        given: names of the fields with a value.
        extra: values of the additional keys of ``read_songs``.
    """

    number: int
    request: Request | None = None
    error: str = ""
    given: frozenset[str] = frozenset()
    extra: Mapping[str, str] = field(default_factory=dict)


def read_songs(path: str | Path, extra_keys: Sequence[str] = ()) -> list[SongListEntry]:
    """The entries of a JSONL, YAML, CSV or Parquet file: fields of ``Request``, and text under ``extra_keys``.

    An invalid entry does not affect the others. Relative paths are relative to the list's folder. Several values in one
    CSV cell are separated by ``;``.

    Raises:
        ValueError: the file as a whole cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"songs={path}: cannot read {path.suffix or 'a file without suffix'}; use {', '.join(FORMATS)}"
        )
    try:
        entries = list(_read_entries(path))
    except FileNotFoundError as error:
        raise ValueError(f"songs={path}: no such file; name a list of songs") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"songs={path}: cannot be read ({error_line(error)})") from error
    if not entries:
        raise ValueError(f"songs={path}: lists no song; write one into it")
    is_text = path.suffix.lower() == ".csv"
    return [_parse_entry(number, entry, path.parent, is_text, extra_keys) for number, entry in enumerate(entries, 1)]


def parse_request(record: Mapping[str, Any], folder: Path, is_text: bool = False) -> Request:
    """The request in ``record``.

    Args:
        record: fields of ``Request``.
        folder: relative paths are relative to it.
        is_text: whether all values are strings, as in a CSV file.
    """
    values = {}
    for key, value in record.items():
        if key not in _field_types():
            near = get_close_matches(str(key), _field_types(), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "remove it"
            raise ValueError(f"song.{shorten(key)}: no such field; {hint}")
        if value is not None and not (is_text and value == ""):
            values[key] = _convert(key, _from_text(key, value) if is_text else value)
    request = Request(**values)
    if request.name is not None:
        check_name(request.name)
    return read_lyrics(_resolve_paths(request, folder), folder)


def read_lyrics(song: Request, folder: Path = Path()) -> Request:
    """``song`` with lyrics of the form ``@FILE`` read from the file."""
    if not song.lyrics.startswith("@"):
        return song
    path = folder / song.lyrics[1:]
    try:
        return replace(song, lyrics=path.read_text(encoding="utf-8-sig").strip())
    except FileNotFoundError as error:
        raise ValueError(
            f"song.lyrics=@{shorten(path)}: no such file; name one, or write the lyrics themselves"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"song.lyrics=@{path}: not UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"song.lyrics=@{shorten(path)}: cannot be read ({error_line(error)})") from error


def check_name(name: str) -> None:
    """Raises ``ValueError`` for a name with a folder, of a hidden file, or with characters that are not portable."""
    reason = None
    if not name.strip() or name != name.strip():
        reason = "is empty, or has spaces around it"
    elif any(mark in name for mark in "/\\:") or name.startswith("."):
        reason = "must not contain a folder or start with a dot"
    elif any(unicodedata.category(letter).startswith("C") for letter in name):
        reason = "has an invisible character"
    elif len(name.encode("utf-8")) > NAME_BYTES:
        reason = f"is longer than {NAME_BYTES} bytes"
    elif name.split(".")[0].lower() in RESERVED:
        reason = "is a device name on Windows"
    if reason:
        raise ValueError(f"song.name={shorten(name)}: {reason}; use another name, or none")


def _read_entries(path: Path) -> Iterator[Any]:
    """The unchecked entries of the file; an exception in place of a line that cannot be parsed."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _read_parquet(path)
        return
    text = path.read_text(encoding="utf-8-sig")
    if suffix == ".csv":
        yield from csv.DictReader(text.splitlines(keepends=True), strict=True)
    elif suffix == ".jsonl":
        yield from (_parse_json(line) for line in text.split("\n") if line.strip())
    else:
        yield from _read_yaml(path, text)


def _parse_json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return error


def _read_yaml(path: Path, text: str) -> Iterable[Any]:
    import yaml

    try:
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"songs={path}: not YAML ({error_line(error)})") from error
    if not isinstance(entries, list):
        raise ValueError(f"songs={path}: need a list of songs, each starting with a dash")
    return entries


def _read_parquet(path: Path) -> Iterator[Any]:
    from pyarrow import ArrowException, parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except ArrowException as error:
        raise ValueError(f"songs={path}: not a Parquet file ({error_line(error)})") from error


def _parse_entry(number: int, entry: Any, folder: Path, is_text: bool, extra_keys: Sequence[str]) -> SongListEntry:
    if isinstance(entry, Exception):
        return SongListEntry(number, error=f"song: not JSON ({error_line(entry)})")
    if not isinstance(entry, Mapping):
        return SongListEntry(number, error=f"song={shorten(entry)}: need fields with values, such as caption")
    if None in entry:
        return SongListEntry(number, error="song: more cells than columns; put quotes around commas")
    try:
        extra = {key: _label(key, entry[key]) for key in extra_keys if entry.get(key) not in (None, "")}
        record = {key: value for key, value in entry.items() if key not in extra_keys}
        given = frozenset(key for key, value in record.items() if value not in (None, ""))
        return SongListEntry(number, parse_request(record, folder, is_text), given=given, extra=extra)
    except (ValueError, OverflowError) as error:
        return SongListEntry(number, error=error_line(error))


@cache
def _field_types() -> dict[str, Any]:
    """The type of each field of ``Request``, without ``None``."""
    hints = get_type_hints(Request).items()
    return {name: get_args(hint)[0] if isinstance(hint, UnionType) else hint for name, hint in hints}


def _convert(key: str, value: Any) -> Any:
    """``value`` in the type of the field ``key``."""
    kind = _field_types()[key]
    if get_origin(kind) is tuple:
        return tuple(_convert_one(key, item, get_args(kind)[0]) for item in _as_list(key, value))
    if key == "time_signature" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _convert_one(key, value, kind)


def _convert_one(key: str, value: Any, kind: type) -> Any:
    if kind is AdapterUse:
        return _adapter(value)
    return _string(key, value) if kind is str else _number(key, value, whole=kind is int)


def _string(key: str, value: Any) -> str:
    if not isinstance(value, str):
        hint = "write it in quotes" if isinstance(value, bool) else "need text"
        raise ValueError(f"song.{key}={shorten(value)}: {hint}")
    return value


def _label(key: str, value: Any) -> str:
    """``value`` as a string; also a whole number, such as an id."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _string(key, value)


def _number(key: str, value: Any, whole: bool) -> int | float:
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"song.{key}={shorten(value)}: need {kind}")
    if (isinstance(value, float) and not math.isfinite(value)) or (whole and value != int(value)):
        raise ValueError(f"song.{key}={value}: need {kind}")
    if abs(value) >= LARGEST:
        raise ValueError(f"song.{key}={shorten(value)}: is too large; need below 2**63")
    return int(value) if whole else float(value)


def _as_list(key: str, value: Any) -> list[Any]:
    if isinstance(value, (str, Mapping)):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"song.{key}={shorten(value)}: need a list")
    return list(value)


def _adapter(value: Any) -> AdapterUse:
    if isinstance(value, str):
        return AdapterUse(path=value)
    if not isinstance(value, Mapping) or "path" not in value or value.keys() - {"path", "scale"}:
        raise ValueError(f"song.adapters={shorten(value)}: need a path, or a path and a scale")
    return AdapterUse(
        path=_string("adapters", value["path"]), scale=_number("adapters", value.get("scale", 1.0), False)
    )


def _from_text(key: str, value: Any) -> Any:
    """A CSV cell as a number or a list, if the field is one."""
    if not isinstance(value, str):
        raise ValueError(f"song.{key}: has several cells; put quotes around commas")
    if get_origin(_field_types()[key]) is tuple:
        items = [item.strip() for item in value.split(";") if item.strip()]
        parse = {"adapters": _parse_adapter, "codes": lambda item: _parse_number(key, item)}.get(key)
        return [parse(item) for item in items] if parse else items
    return value if _field_types()[key] is str else _parse_number(key, value)


def _parse_number(key: str, text: str) -> int | float:
    try:
        return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError as error:
        raise ValueError(f"song.{key}={shorten(text)}: need a number") from error


def _parse_adapter(item: str) -> dict[str, Any]:
    """``PATH`` or ``PATH*SCALE``."""
    path, separator, scale = item.rpartition("*")
    if not separator:
        return {"path": item}
    try:
        return {"path": path.strip(), "scale": float(scale)}
    except ValueError as error:
        raise ValueError(f"song.adapters={shorten(item)}: need PATH or PATH*SCALE") from error


def _resolve_paths(request: Request, folder: Path) -> Request:
    """``request`` with relative paths resolved against ``folder``."""
    adapters = request.adapters or ()
    named = {
        "source": () if request.source is None else (request.source,),
        "references": request.references,
        "adapters": tuple(use.path for use in adapters),
    }
    for key, paths in named.items():
        for path in paths:
            if "\0" in path or not path:
                raise ValueError(f"song.{key}={shorten(path)}: not a path")
    return replace(
        request,
        source=None if request.source is None else str(folder / request.source),
        references=tuple(str(folder / path) for path in request.references),
        adapters=request.adapters and tuple(replace(use, path=str(folder / use.path)) for use in adapters),
    )
