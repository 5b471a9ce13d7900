"""Files that list songs, and files that songs name: read with every value checked. Knows no network."""

from __future__ import annotations

import csv
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from acestep.songs.song import AdapterUse, Request, shown

FORMATS = (".jsonl", ".yaml", ".yml", ".csv", ".parquet")
NAME_BYTES = 200
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
LARGEST = 2**63


@dataclass(frozen=True)
class Line:
    """One entry of a list: its request, or why there is none.

    Attributes:
        number: its place, from 1.
        request: what is to be made.
        error: why there is none.
        given: the fields that it names.
        more: what it says beyond a request's fields, by key.
    """

    number: int
    request: Request | None = None
    error: str = ""
    given: frozenset[str] = frozenset()
    more: Mapping[str, str] = field(default_factory=dict)


def read_songs(path: str | Path, more: Sequence[str] = ()) -> list[Line]:
    """The entries of a JSONL, YAML, CSV or Parquet file, whose fields are those of ``Request``, and texts ``more``.

    A broken entry does not keep the others from being read. Files that entries name are looked for beside the list;
    a cell of a CSV that holds several values divides them by ``;``.

    Raises:
        ValueError: where the file as a whole cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"songs={path}: cannot read {path.suffix or 'a file without suffix'}; use {', '.join(FORMATS)}"
        )
    try:
        entries = list(_entries(path))
    except FileNotFoundError as error:
        raise ValueError(f"songs={path}: no such file; name a list of songs") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"songs={path}: cannot be read ({_flat(error)})") from error
    if not entries:
        raise ValueError(f"songs={path}: lists no song; write one into it")
    is_text = path.suffix.lower() == ".csv"
    return [_line(number, entry, path.parent, is_text, more) for number, entry in enumerate(entries, 1)]


def request_of(record: Mapping[str, Any], folder: Path, is_text: bool = False) -> Request:
    """The request that ``record`` describes, relative paths taken from ``folder``; ``is_text`` where all is strings."""
    values = {}
    for key, value in record.items():
        if key not in _hints():
            near = get_close_matches(str(key), _hints(), n=1, cutoff=0.5)
            raise ValueError(f"song.{shown(key)}: no such field; {f'did you mean {near[0]}?' if near else 'remove it'}")
        if value is not None and not (is_text and value == ""):
            values[key] = _value(key, _from_text(key, value) if is_text else value)
    request = Request(**values)
    if request.name is not None:
        check_name(request.name)
    return read_lyrics(_beside(request, folder), folder)


def read_lyrics(song: Request, folder: Path = Path()) -> Request:
    """``song``, its lyrics read from the file that they name after an ``@``."""
    if not song.lyrics.startswith("@"):
        return song
    path = folder / song.lyrics[1:]
    try:
        return replace(song, lyrics=path.read_text(encoding="utf-8-sig").strip())
    except FileNotFoundError as error:
        raise ValueError(
            f"song.lyrics=@{shown(path)}: no such file; name one, or write the lyrics themselves"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"song.lyrics=@{path}: not UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"song.lyrics=@{shown(path)}: cannot be read ({_flat(error)})") from error


def check_name(name: str) -> None:
    """Refuse a file name that leads elsewhere, hides, or cannot be read back as it looks."""
    reason = None
    if not name.strip() or name != name.strip():
        reason = "is empty, or has spaces around it"
    elif any(mark in name for mark in "/\\:") or name.startswith("."):
        reason = "a plain file name has no folder in it and starts with no dot"
    elif any(unicodedata.category(letter).startswith("C") for letter in name):
        reason = "holds a character that cannot be seen"
    elif len(name.encode("utf-8")) > NAME_BYTES:
        reason = f"is longer than {NAME_BYTES} bytes"
    elif name.split(".")[0].lower() in RESERVED:
        reason = "is a device's name on Windows"
    if reason:
        raise ValueError(f"song.name={shown(name)}: {reason}; give another, or none")


def _entries(path: Path) -> Iterator[Any]:
    """What the file lists, unchecked; an exception in place of what cannot be parsed by itself."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _rows(path)
        return
    text = path.read_text(encoding="utf-8-sig")
    if suffix == ".csv":
        yield from csv.DictReader(text.splitlines(keepends=True), strict=True)
    elif suffix == ".jsonl":
        yield from (_parsed(line) for line in text.split("\n") if line.strip())
    else:
        yield from _documents(path, text)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return error


def _documents(path: Path, text: str) -> Iterable[Any]:
    import yaml

    try:
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"songs={path}: not YAML ({_flat(error)})") from error
    if not isinstance(entries, list):
        raise ValueError(f"songs={path}: need a list of songs, each starting with a dash")
    return entries


def _rows(path: Path) -> Iterator[Any]:
    from pyarrow import ArrowException, parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except ArrowException as error:
        raise ValueError(f"songs={path}: not a Parquet file ({_flat(error)})") from error


def _line(number: int, entry: Any, folder: Path, is_text: bool, more: Sequence[str]) -> Line:
    if isinstance(entry, Exception):
        return Line(number, error=f"song: not JSON ({_flat(entry)})")
    if not isinstance(entry, Mapping):
        return Line(number, error=f"song={shown(entry)}: need fields with values, such as caption")
    if None in entry:
        return Line(number, error="song: has more cells than the list has columns; put quotes around commas")
    try:
        said = {key: _name(key, entry[key]) for key in more if entry.get(key) not in (None, "")}
        rest = {key: value for key, value in entry.items() if key not in more}
        given = frozenset(key for key, value in rest.items() if value not in (None, ""))
        return Line(number, request_of(rest, folder, is_text), given=given, more=said)
    except (ValueError, OverflowError) as error:
        return Line(number, error=_flat(error))


@cache
def _hints() -> dict[str, Any]:
    return {field.name: get_type_hints(Request)[field.name] for field in fields(Request)}


def _kinds(key: str) -> set[type]:
    hint = _hints()[key]
    return {kind for kind in get_args(hint) or (hint,) if kind is not NoneType}


def _value(key: str, value: Any) -> Any:
    """``value`` in the type of the field ``key``."""
    hint = _hints()[key]
    if key == "adapters":
        return tuple(_adapter(item) for item in _several(key, value))
    if hint == tuple[str, ...]:
        return tuple(_text(key, item) for item in _several(key, value))
    if hint == tuple[int, ...]:
        return tuple(_number(key, item, whole=True) for item in _several(key, value))
    if key == "time_signature" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if str in _kinds(key):
        return _text(key, value)
    return _number(key, value, whole=int in _kinds(key))


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        hint = "write it in quotes" if isinstance(value, bool) else "need text"
        raise ValueError(f"song.{key}={shown(value)}: {hint}")
    return value


def _name(key: str, value: Any) -> str:
    """Text, or a number that is meant as one."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(key, value)


def _number(key: str, value: Any, whole: bool) -> int | float:
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"song.{key}={shown(value)}: need {kind}")
    if (isinstance(value, float) and not math.isfinite(value)) or (whole and value != int(value)):
        raise ValueError(f"song.{key}={value}: need {kind}")
    if abs(value) >= LARGEST:
        raise ValueError(f"song.{key}={shown(value)}: is too large")
    return int(value) if whole else float(value)


def _several(key: str, value: Any) -> list[Any]:
    if isinstance(value, (str, Mapping)):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"song.{key}={shown(value)}: need a list")
    return list(value)


def _adapter(value: Any) -> AdapterUse:
    if isinstance(value, str):
        return AdapterUse(path=value)
    if not isinstance(value, Mapping) or "path" not in value or value.keys() - {"path", "scale"}:
        raise ValueError(f"song.adapters={shown(value)}: need a path, or a path and a scale")
    return AdapterUse(path=_text("adapters", value["path"]), scale=_number("adapters", value.get("scale", 1.0), False))


def _from_text(key: str, value: Any) -> Any:
    """A CSV's cell as a number or a list where the field is one."""
    if not isinstance(value, str):
        raise ValueError(f"song.{key}: has several cells; put quotes around commas")
    if key in ("adapters", "tracks", "references", "codes"):
        items = [item.strip() for item in value.split(";") if item.strip()]
        read = {"adapters": _scaled, "codes": lambda item: _read_number(key, item)}.get(key)
        return [read(item) for item in items] if read else items
    return value if str in _kinds(key) else _read_number(key, value)


def _read_number(key: str, text: str) -> int | float:
    try:
        return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
    except ValueError as error:
        raise ValueError(f"song.{key}={shown(text)}: need a number") from error


def _scaled(item: str) -> dict[str, Any]:
    """``PATH`` or ``PATH*SCALE``."""
    path, mark, scale = item.rpartition("*")
    if not mark:
        return {"path": item}
    try:
        return {"path": path.strip(), "scale": float(scale)}
    except ValueError as error:
        raise ValueError(f"song.adapters={shown(item)}: need PATH or PATH*SCALE") from error


def _beside(request: Request, folder: Path) -> Request:
    """``request`` with the files that it names looked for in ``folder``."""
    for key in ("source", "references", "adapters"):
        paths = [use.path for use in request.adapters or ()] if key == "adapters" else getattr(request, key) or ()
        for path in [paths] if isinstance(paths, str) else paths:
            if "\0" in path or not path:
                raise ValueError(f"song.{key}={shown(path)}: not a path")
    return replace(
        request,
        source=None if request.source is None else str(folder / request.source),
        references=tuple(str(folder / path) for path in request.references),
        adapters=request.adapters and tuple(replace(use, path=str(folder / use.path)) for use in request.adapters),
    )


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split())
