"""What a source says of a song: one typed record, whichever of the many names for its fields were used."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from acestep.data.lyrics import Times, read_lrc
from acestep.types import Song

NAMES = {
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
"""Of every field, the names it goes by in upstream's, Side-Step's, DiffSynth's, AudioCraft's and other files."""


@dataclass(frozen=True)
class Description:
    """What is said of one audio file.

    Attributes:
        song: the words that prompts are made of. Its ``seconds`` are left to the audio.
        truth: a JSON text for those who score songs against it (empty if there is none).
        times: start of each line of the lyrics in seconds, see ``data.lyrics``; empty if unknown.
        instrumental: whether it is said to be; ``None`` where nothing is said.
        tags: single words or phrases beside the caption.
        genre: what the caption can be replaced with.
        tag: the data set's own name for its style, for captions.
        split: ``train`` or empty, ``validation``, ``test``.
        licence: under which the audio may be used.
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


def described(facts: Mapping[str, object], where: str, name: str = "") -> Description:
    """The record of ``facts``, as they stand in a JSON file, a row or a manifest; unknown names are passed over.

    Args:
        facts: by any of ``NAMES``, in any case.
        where: what to call their place in messages.
        name: stands in for a missing caption.

    Raises:
        ValueError: where a value is not what its field needs.
    """
    lower = {str(key).strip().lower(): value for key, value in facts.items()}
    found = {field: said(lower, field) for field in NAMES}
    lyrics, times = read_lrc(_text(found["lyrics"]).replace("\r\n", "\n"))
    instrumental = _flag(found["instrumental"], where)
    if instrumental:
        lyrics, times = "", ()
    tags = _tags(found["tags"])
    song = Song(
        caption=_text(found["caption"]) or ", ".join(tags) or _text(found["genre"]) or name,
        lyrics=lyrics,
        language=_text(found["language"]) or "unknown",
        bpm=_beats(found["bpm"], where),
        key=_text(found["key"]) or None,
        time_signature=_text(found["time_signature"]) or None,
    )
    truth = found["truth"]
    return Description(
        song=song,
        truth="" if truth is None else json.dumps(truth, ensure_ascii=False, sort_keys=True),
        times=times,
        instrumental=instrumental,
        tags=tags,
        genre=", ".join(_tags(found["genre"])),
        tag=_text(found["tag"]),
        split=_text(found["split"]).lower(),
        licence=_text(found["licence"]),
    )


def said(facts: Mapping[str, object], field: str) -> object:
    """What ``facts``, by names in lower case, say of ``field``; ``None`` where they say nothing.

    Sources write blanks, ``N/A``, not-a-number and empty collections for "unknown". Of several texts under names of
    their own, as ACE-Step v1's data sets have captions, the first counts.
    """
    for name in NAMES[field]:
        value = facts.get(name)
        if isinstance(value, Mapping) and field != "truth":
            value = next(filter(None, value.values()), None)
        unknown = value is None or (isinstance(value, float) and math.isnan(value))
        blank = isinstance(value, str) and value.strip().lower() in {"", "n/a", "none", "null"}
        if not unknown and not blank and value not in ([], {}, ()):
            return value
    return None


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _tags(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, Iterable) else [value]
    return tuple(tag for part in parts if (tag := str(part).strip()))


def _beats(value: object, where: str) -> int | None:
    if value is None:
        return None
    try:
        return round(float(str(value)))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where}: bpm={value!r}: need a number") from error


def _flag(value: object, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).strip().lower() not in known:
        raise ValueError(f"{where}: instrumental={value!r}: need true or false")
    return known[str(value).strip().lower()]
