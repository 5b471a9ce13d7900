"""A folder of audio files with text beside them, read as songs.

Beside ``NAME.flac`` (or any other audio suffix), all optional:

* ``NAME.caption.txt``: the caption.
* ``NAME.lyrics.txt``: the lyrics. Times in LRC style are dropped.
* ``NAME.json``: ``caption``, ``bpm``, ``keyscale`` (or ``key``), ``timesignature``, ``language``; ``truth`` is carried
  along unread, for those who score songs against it.
* ``NAME.txt``: the caption. Where the caption already stands in ``NAME.caption.txt`` or in the JSON, it is the lyrics,
  as upstream's scanner reads it (``dataset_builder_modules/scan.py``); ``NAME.lyrics.txt`` still goes first.

A song without any caption is captioned by its file name, separators turned into spaces.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from acestep.types import Song

SUFFIXES = frozenset({".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"})

_LRC_TIME = re.compile(r"\[\d+:\d+(?:[.:]\d+)?\][ \t]*")
_SEPARATORS = re.compile(r"[\s._-]+")


@dataclass(frozen=True)
class Description:
    """What stands beside one audio file: the song in words, and ``truth`` as a JSON text (empty if there is none)."""

    song: Song
    truth: str = ""


def find_songs(folder: str | Path) -> list[Path]:
    """Every audio file under ``folder``, recursively, sorted by path; hidden files and folders are left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"source={folder}: not a folder; name the folder that holds the songs")
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not found:
        raise ValueError(f"source={folder}: no audio file in it; put songs there ({', '.join(sorted(SUFFIXES))})")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def describe(path: Path) -> Description:
    """The text beside ``path``. Raises ``ValueError`` where a sidecar cannot be understood."""
    facts = _read_json(path.with_suffix(".json"))
    plain = _read_text(path.with_suffix(".txt"))
    caption = _read_text(path.with_suffix(".caption.txt")) or str(facts.get("caption") or "").strip()
    lyrics = _read_text(path.with_suffix(".lyrics.txt"))
    if caption:
        lyrics = lyrics or plain
    else:
        caption = plain
    truth = facts.get("truth")
    song = Song(
        caption=caption or _SEPARATORS.sub(" ", path.stem).strip(),
        lyrics=_LRC_TIME.sub("", lyrics),
        language=str(facts.get("language") or "unknown"),
        bpm=_beats(facts.get("bpm"), path),
        key=_text(facts.get("keyscale") or facts.get("key")),
        time_signature=_text(facts.get("timesignature") or facts.get("time_signature")),
    )
    return Description(song, "" if truth is None else json.dumps(truth, ensure_ascii=False, sort_keys=True))


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
    return facts


def _beats(value: object, path: Path) -> int | None:
    if value is None or value == "":
        return None
    try:
        return round(float(str(value)))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path.stem}.json: bpm={value!r}: need a number") from error


def _text(value: object) -> str | None:
    return None if value is None else str(value).strip() or None
