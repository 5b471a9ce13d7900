"""A folder of audio files with text beside them, read as songs.

Beside ``NAME.flac`` (or any other audio suffix), all optional; what stands further up goes first:

* ``NAME.lrc``: the lyrics with the time of each line.
* ``NAME.lyrics.txt``, ``NAME_lyrics.txt``, ``NAME.lyrics``: the lyrics, with LRC times or without.
* ``NAME.json``: any of the fields of ``data.words``, such as ``caption``, ``bpm``, ``keyscale``, ``timesignature``,
  ``language``; ``truth`` is carried along unread, for those who score songs against it.
* ``NAME.caption.txt``, ``NAME_prompt.txt``: the caption.
* ``NAME.txt``: the caption. Where that stands in one of the others, or where there are lines such as ``[verse]``, it is
  the lyrics, as upstream's scanner reads it (``dataset_builder_modules/scan.py``). It may also hold all fields: as
  ``key: value`` lines with ``lyrics:`` last (Side-Step's ``sidecar_io.py``) or as ``<CAPTION>`` ... ``<LYRICS>``
  (ai-toolkit).

A song without any caption is captioned by its file name, separators turned into spaces.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from acestep.data.words import NAMES, Description, described, said

__all__ = ["SUFFIXES", "Description", "describe", "find_songs"]

SUFFIXES = frozenset(
    {
        ".aac", ".aif", ".aifc", ".aiff", ".ape", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp2", ".mp3", ".mp4",
        ".oga", ".ogg", ".opus", ".w64", ".wav", ".webm", ".wma", ".wv",
    }
)  # fmt: skip
"""Of audio files, those that cannot be decoded included: they are to be told of, not passed over."""

_SEPARATORS = re.compile(r"[\s._-]+")
_KEY_VALUE = re.compile(rf"({'|'.join(name for names in NAMES.values() for name in names)}) *:(.*)", re.IGNORECASE)
_SECTION = re.compile(r"^\[[^\]\n]+\]\s*$", re.MULTILINE)
_ANGLE = re.compile(r"<([A-Z_]+)>(.*?)(?=</?[A-Z_]+>|\Z)", re.DOTALL)


def find_songs(folder: str | Path, key: str = "source") -> list[Path]:
    """Every audio file under ``folder``, sorted by path; links are followed, hidden files and folders left out.

    ``key`` is what names the folder in messages.

    A folder that may not be read is among them: it too is to be told of.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{key}={folder}: not a folder; name the folder that holds the songs")
    found = sorted(_walk(folder), key=lambda path: path.relative_to(folder).as_posix())
    if not found:
        raise ValueError(f"{key}={folder}: no audio file in it; put songs there ({', '.join(sorted(SUFFIXES))})")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    seen = set[str]()
    closed: list[Path] = []
    for here, folders, files in os.walk(folder, onerror=lambda e: closed.append(Path(e.filename)), followlinks=True):
        place = os.path.realpath(here)
        if place in seen:  # a link back, or a second link to one folder
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(here, name)
    yield from closed


def describe(path: Path, row: Mapping[str, object] | None = None, where: str = "") -> Description:
    """The text beside ``path``; what a ``row`` of a table says goes first. ``where`` is the row, for messages.

    Raises:
        ValueError: where a sidecar cannot be understood.
    """
    facts = _read_json(path.with_suffix(".json"))
    plain = _read_text(path.with_suffix(".txt"))
    structured = _fields(plain)
    if structured:
        facts, plain = _over(facts, structured), ""
    lyrics = _beside(path, ".lrc", ".lyrics.txt", "_lyrics.txt", ".lyrics")
    caption = _beside(path, ".caption.txt", "_prompt.txt")
    if not (caption or said(facts, "caption") or _SECTION.search(plain)):
        caption = plain
    elif not said(facts, "lyrics"):
        lyrics = lyrics or plain
    facts = _over({"lyrics": lyrics}, _over(facts, {"caption": caption}))
    name = _SEPARATORS.sub(" ", path.stem).strip()
    return described(_over(_lower(row or {}), facts), where or f"{path.stem}.json", name)


def _over(first: dict[str, object], second: dict[str, object]) -> dict[str, object]:
    """All that ``first`` says, and what ``second`` says of other fields, whatever names they use for them."""
    known = {name for field, names in NAMES.items() if said(first, field) is not None for name in names}
    return first | {key: value for key, value in second.items() if key not in known}


def _lower(facts: Mapping[str, object]) -> dict[str, object]:
    return {str(key).strip().lower(): value for key, value in facts.items()}


def _fields(text: str) -> dict[str, object]:
    """The fields of a text sidecar that holds more than one thing; none if it is plain text."""
    if "<CAPTION>" in text or "<LYRICS>" in text:
        return {name.lower(): value.strip() for name, value in _ANGLE.findall(text)}
    found: dict[str, object] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        entry = _KEY_VALUE.fullmatch(line.strip())
        if entry is None:
            return {}
        if entry[1].lower() in NAMES["lyrics"]:
            rest = "\n".join([entry[2].strip(), *lines[number + 1 :]]).strip()
            return {**found, entry[1].lower(): rest}
        found[entry[1].lower()] = entry[2].strip()
    return found


def _beside(path: Path, *endings: str) -> str:
    """The first of the files ``NAME + ending`` that says anything."""
    return next((text for ending in endings if (text := _read_text(path.with_name(path.stem + ending)))), "")


def _read_text(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not UTF-8 text; save it as UTF-8") from error


def _read_json(path: Path) -> dict[str, object]:
    text = _read_text(path)
    if not text:
        return {}
    try:
        facts = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}: not JSON ({error})") from error
    if not isinstance(facts, dict):
        raise ValueError(f'{path.name}: need one JSON object, such as {{"bpm": 120}}')
    return _lower(facts)
