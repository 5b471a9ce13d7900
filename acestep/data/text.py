"""The text that belongs to an audio file: fields of JSON files and table rows, sidecar files, and timed lyrics (LRC).

Sidecars of ``NAME.flac`` (or any other audio suffix), all optional; earlier ones in this list have precedence:

* ``NAME.lrc``: the lyrics with the time of each line.
* ``NAME.lyrics.txt``, ``NAME_lyrics.txt``, ``NAME.lyrics``: the lyrics, with LRC times or without.
* ``NAME.json``: any of the fields of ``FIELD_NAMES``, such as ``caption``, ``bpm``, ``keyscale``, ``timesignature``,
  ``language``; ``truth`` is stored for metrics and not read otherwise.
* ``NAME.caption.txt``, ``NAME_prompt.txt``: the caption.
* ``NAME.txt``: the caption. If one of the others has a caption, or it contains lines such as ``[verse]``, it is the
  lyrics, as in upstream's scanner (``dataset_builder_modules/scan.py``). It may also hold all fields: as
  ``key: value`` lines with ``lyrics:`` last (Side-Step's ``sidecar_io.py``) or as ``<CAPTION>`` ... ``<LYRICS>``
  (ai-toolkit).

Without any caption, the file name is the caption, separators turned into spaces.

Times of lyrics are one for each line, in seconds from the song's start; ``None`` for lines without their own, such as
``[verse]``. They are an empty tuple if there are none at all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from acestep.songs import Song
from acestep.songs.metadata import SECTION_TAG

FIELD_NAMES = {
    "caption": ("caption", "prompt", "description", "text", "recaption"),
    "lyrics": ("lyrics", "norm_lyrics", "raw_lyrics", "formatted_lyrics"),
    "language": ("language", "vocal_language", "lang"),
    "bpm": ("bpm", "tempo"),
    "key": ("keyscale", "key", "key_scale"),
    "time_signature": ("timesignature", "time_signature", "signature"),
    "instrumental": ("instrumental", "is_instrumental"),
    "tags": ("tags", "keywords"),
    "genre": ("genre", "genres"),
    "tag": ("custom_tag", "activation_tag"),
    "split": ("split", "subset"),
    "licence": ("licence", "license"),
    "truth": ("truth",),
}
"""Names of each field in the files of upstream, Side-Step, DiffSynth, AudioCraft and others, by precedence."""
MAX_LINE_SECONDS = 10.0
"""A sung line is assumed to last at most this long, however late the next one starts."""

_SEPARATORS = re.compile(r"[\s._-]+")
_ANY_NAME = "|".join(name for names in FIELD_NAMES.values() for name in names)
_KEY_VALUE = re.compile(rf"({_ANY_NAME}) *:(.*)", re.IGNORECASE)
_ANGLE = re.compile(r"<([A-Z_]+)>(.*?)(?=</?[A-Z_]+>|\Z)", re.DOTALL)
_STAMP = re.compile(r"\[(\d+):(\d+(?:[.:]\d+)?)\]")
_STAMPS = re.compile(rf"(?:{_STAMP.pattern}[ \t]*)+")
_WORD_STAMP = re.compile(r"<\d+:\d+(?:[.:]\d+)?>[ \t]*")
_LRC_HEADER = re.compile(r"\[(ti|ar|al|au|by|re|ve|la|length|tool|offset|#)\s*:(?P<value>[^\]]*)\]", re.IGNORECASE)

Fields = dict[str, object]
Times = tuple[float | None, ...]


@dataclass(frozen=True)
class SongText:
    """Everything known about an audio file besides its audio.

    Attributes:
        song: what prompts are rendered from; its ``seconds`` come from the audio later.
        truth: JSON text with ground truth for metrics; empty if there is none.
        times: start of each line of the lyrics in seconds; empty if unknown.
        instrumental: ``None`` if unknown.
        tags: single words or phrases beside the caption.
        genre: alternative caption, see ``captions.GenreOnly``.
        tag: the data set's tag for its style, see ``captions.DatasetTag``.
        split: ``train`` or empty, ``validation``, ``test``.
        licence: of the audio.
    """

    song: Song
    truth: str = ""
    times: Times = ()
    instrumental: bool | None = None
    tags: tuple[str, ...] = ()
    genre: str = ""
    tag: str = ""
    split: str = ""
    licence: str = ""

    def columns(self) -> dict[str, Any]:
        """Values of the ``TEXT_COLUMNS`` of a latent store."""
        song = asdict(self.song)
        return {
            **{name: song[name] for name in ("caption", "lyrics", "language", "bpm", "key", "time_signature")},
            **{name: getattr(self, name) for name in ("instrumental", "genre", "tag", "split", "licence", "truth")},
            "lyric_times": list(self.times),
            "tags": list(self.tags),
        }


def parse_fields(fields: Mapping[str, object], where: str, name: str = "") -> SongText:
    """The text of a song from ``fields`` of a JSON file, a table row or a manifest; unknown names are ignored.

    Args:
        fields: by any of ``FIELD_NAMES``, in any case.
        where: their place, for messages.
        name: replaces a missing caption.

    Raises:
        ValueError: a value has the wrong type.
    """
    lower = lower_names(fields)
    values = {field: field_value(lower, field) for field in FIELD_NAMES}
    text = {field: "" if value is None else str(value).strip() for field, value in values.items()}
    lyrics, times = read_lrc(text["lyrics"].replace("\r\n", "\n"))
    instrumental = _parse_flag(values["instrumental"], where)
    if instrumental:
        lyrics, times = "", ()
    tags = _parse_tags(values["tags"])
    song = Song(
        caption=text["caption"] or ", ".join(tags) or text["genre"] or name,
        lyrics=lyrics,
        language=text["language"] or "unknown",
        bpm=_parse_bpm(values["bpm"], where),
        key=text["key"] or None,
        time_signature=text["time_signature"] or None,
    )
    truth = values["truth"]
    return SongText(
        song=song,
        truth="" if truth is None else json.dumps(truth, ensure_ascii=False, sort_keys=True),
        times=times,
        instrumental=instrumental,
        tags=tags,
        genre=", ".join(_parse_tags(values["genre"])),
        tag=text["tag"],
        split=text["split"].lower(),
        licence=text["licence"],
    )


def field_value(fields: Mapping[str, object], field: str) -> object:
    """The value of ``field`` in ``fields``, whose names are in lower case; ``None`` if unknown.

    Blanks, ``N/A``, NaN and empty collections count as unknown. From a mapping of texts, as the captions in
    ACE-Step v1's data sets, the first one is taken.
    """
    for name in FIELD_NAMES[field]:
        value = fields.get(name)
        if isinstance(value, Mapping) and field != "truth":
            value = next(filter(None, value.values()), None)
        unknown = value is None or (isinstance(value, float) and math.isnan(value))
        blank = isinstance(value, str) and value.strip().lower() in {"", "n/a", "none", "null"}
        if not unknown and not blank and value not in ([], {}, ()):
            return value
    return None


def lower_names(fields: Mapping[str, object]) -> Fields:
    return {str(key).strip().lower(): value for key, value in fields.items()}


def _parse_tags(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, Iterable) else [value]
    return tuple(tag for part in parts if (tag := str(part).strip()))


def _parse_bpm(value: object, where: str) -> int | None:
    if value is None:
        return None
    try:
        return round(float(str(value)))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where}: bpm={value!r}: need a number") from error


def _parse_flag(value: object, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    flags = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).strip().lower() not in flags:
        raise ValueError(f"{where}: instrumental={value!r}: need true or false")
    return flags[str(value).strip().lower()]


def read_sidecars(path: Path, row: Mapping[str, object] | None = None, where: str = "") -> SongText:
    """The text of the audio file ``path`` from its sidecars.

    Args:
        path: the audio file; need not exist.
        row: fields of a table, which have precedence.
        where: the row's place, for messages.

    Raises:
        ValueError: a sidecar or the row is malformed.
    """
    fields = _read_json_fields(path.with_suffix(".json"))
    plain = _read_sidecar(path.with_suffix(".txt"))
    structured = _text_fields(plain)
    if structured:
        fields, plain = _merge_fields(fields, structured), ""
    lyrics = _first_sidecar(path, ".lrc", ".lyrics.txt", "_lyrics.txt", ".lyrics")
    caption = _first_sidecar(path, ".caption.txt", "_prompt.txt")
    has_sections = any(SECTION_TAG.fullmatch(line.rstrip()) for line in plain.split("\n"))
    if not (caption or field_value(fields, "caption") or has_sections):
        caption = plain
    elif not field_value(fields, "lyrics"):
        lyrics = lyrics or plain
    fields = _merge_fields({"lyrics": lyrics}, _merge_fields(fields, {"caption": caption}))
    name = _SEPARATORS.sub(" ", path.stem).strip()
    return parse_fields(_merge_fields(lower_names(row or {}), fields), where or f"{path.stem}.json", name)


def _merge_fields(first: Fields, second: Fields) -> Fields:
    """``first``, and the fields of ``second`` that it does not know under any of their names."""
    known = {name for field, names in FIELD_NAMES.items() if field_value(first, field) is not None for name in names}
    return first | {key: value for key, value in second.items() if key not in known}


def _text_fields(text: str) -> Fields:
    """The fields of a structured text sidecar; empty if it is plain text."""
    if "<CAPTION>" in text or "<LYRICS>" in text:
        return {name.lower(): value.strip() for name, value in _ANGLE.findall(text)}
    fields: Fields = {}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        entry = _KEY_VALUE.fullmatch(line.strip())
        if entry is None:
            return {}
        key, value = entry[1].lower(), entry[2].strip()
        if key in FIELD_NAMES["lyrics"]:
            return fields | {key: "\n".join([value, *lines[number + 1 :]]).strip()}
        fields[key] = value
    return fields


def _first_sidecar(path: Path, *endings: str) -> str:
    """The first of the files ``NAME + ending`` that has any text."""
    return next((text for ending in endings if (text := _read_sidecar(path.with_name(path.stem + ending)))), "")


def _read_sidecar(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not UTF-8 text; save it as UTF-8") from error


def _read_json_fields(path: Path) -> Fields:
    text = _read_sidecar(path)
    if not text:
        return {}
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}: not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f'{path.name}: need one JSON object, such as {{"bpm": 120}}')
    return lower_names(fields)


def read_lrc(text: str) -> tuple[str, Times]:
    """The plain lines of an LRC text and their times; a text without time stamps is returned as it is.

    A line with several stamps is repeated. ``[offset:ms]`` shifts all times (positive is earlier); other headers, such
    as ``[ar:...]``, are dropped.
    """
    if not _STAMP.search(text):
        return text, ()
    shift, timed, pending = 0.0, [], list[str]()
    for raw in text.splitlines():
        line = raw.strip()
        header = _LRC_HEADER.fullmatch(line)
        if header:
            if line.lower().startswith("[offset") and header["value"].strip().lstrip("+-").isdecimal():
                shift = -int(header["value"]) / 1000
            continue
        stamps = _STAMPS.match(line)
        if stamps is None:
            pending.append(raw.rstrip())  # goes with the timed line after it
            continue
        words = _WORD_STAMP.sub("", line[stamps.end() :]).strip()
        for minutes, seconds in _STAMP.findall(stamps[0]):
            timed.append((60 * int(minutes) + float(seconds.replace(":", ".")), pending, words))
            pending = []
    lines, times = list[str](), list[float | None]()
    for start, before, words in sorted(timed, key=lambda entry: entry[0]):
        lines += [*before, words]
        times += [*[None] * len(before), max(0.0, start + shift)]
    lines, times = [*lines, *pending], [*times, *[None] * len(pending)]
    full = [number for number, line in enumerate(lines) if line]
    inner = slice(full[0], full[-1] + 1) if full else slice(0)
    return "\n".join(lines[inner]), tuple(times[inner])


def crop_lyrics(lyrics: str, times: Sequence[float | None], start: float, end: float) -> str:
    """The lines of which at least half is sung from ``start`` to ``end`` seconds, with their section tags."""
    lines = lyrics.split("\n")
    if len(lines) != len(times):
        raise ValueError(f"lyrics: {len(times)} times for {len(lines)} lines; need one for each, or none")
    starts = [time for time in times if time is not None]
    ends = {a: min(b, a + MAX_LINE_SECONDS) for a, b in pairwise(starts)}
    kept, heading = list[str](), list[str]()
    for line, time in zip(lines, times, strict=True):
        if time is None:
            # Untimed lines belong to the next timed one; a section tag replaces that of a section without kept lines.
            heading = [line] if SECTION_TAG.fullmatch(line.strip()) else [*heading, line]
            continue
        stop = ends.get(time, time + MAX_LINE_SECONDS / 2)
        if max(0.0, min(stop, end) - max(time, start)) * 2 >= max(stop - time, 1e-6) and start <= stop and time < end:
            kept += [*heading, line]
            heading = []
    return "\n".join(kept).strip("\n")
