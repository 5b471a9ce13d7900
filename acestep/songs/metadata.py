"""Valid values of a song's metadata (language, tempo, key, time signature) and their normal forms.

Source: upstream ``constants.py`` (``VALID_LANGUAGES``, ``KEYSCALE_NOTES``, ``BPM_MIN`` and its neighbours).
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from difflib import get_close_matches

from acestep.songs.song import AnySong, shorten

LANGUAGES = {
    "ar": "Arabic", "az": "Azerbaijani", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fa": "Persian",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "ht": "Haitian Creole",
    "hu": "Hungarian", "id": "Indonesian", "is": "Icelandic", "it": "Italian", "ja": "Japanese", "ko": "Korean",
    "la": "Latin", "lt": "Lithuanian", "ms": "Malay", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian",
    "pa": "Punjabi", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sa": "Sanskrit",
    "sk": "Slovak", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai",
    "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "yue": "Cantonese",
    "zh": "Chinese", "unknown": "Unknown",
}  # fmt: skip
MIN_BPM, MAX_BPM = 30, 300
TIME_SIGNATURES = ("2", "3", "4", "6")
SECTION_TAG = re.compile(r"\[[^\]\n]*\]")
"""A section tag in lyrics, such as ``[verse]``."""

_CODES = {name.lower(): code for code, name in LANGUAGES.items()} | {code: code for code in LANGUAGES}
_KEY = re.compile(r"\s*([A-G])\s*([#b♯♭]?)\s*(major|minor|maj|min|m)?\s*", re.IGNORECASE)


def validate_song(song: AnySong) -> AnySong:
    """``song`` with its metadata normalised to the form of the training prompts.

    Raises:
        ValueError: names the first invalid field.
    """
    if song.seconds is not None and not math.isfinite(song.seconds):
        raise ValueError(f"song.seconds={song.seconds}: need a number of seconds")
    return replace(
        song,
        language=normalize_language(song.language),
        bpm=validate_bpm(song.bpm),
        key=normalize_key(song.key),
        time_signature=normalize_time_signature(song.time_signature),
        seed=_validate_seed(song.seed),
    )


def normalize_language(language: str) -> str:
    """The code of a language given by code (``pt``, ``pt-BR``) or English name, in any case."""
    name = str(language).strip().lower()
    for candidate in (name, re.split(r"[-_]", name)[0]):
        if candidate in _CODES:
            return _CODES[candidate]
    near = get_close_matches(name, _CODES, n=1, cutoff=0.5)
    hint = f"did you mean {_CODES[near[0]]} ({LANGUAGES[_CODES[near[0]]]})?" if near else f"use {' '.join(LANGUAGES)}"
    raise ValueError(f"song.language={shorten(language)}: not a language of the model; {hint}")


def validate_bpm(bpm: float | None) -> int | None:
    if bpm is None:
        return None
    if isinstance(bpm, (bool, str)) or not math.isfinite(bpm) or bpm != int(bpm) or not MIN_BPM <= bpm <= MAX_BPM:
        raise ValueError(
            f"song.bpm={shorten(bpm)}: need a whole number from {MIN_BPM} to {MAX_BPM}; leave it out if unsure"
        )
    return int(bpm)


def parse_key(text: str | None) -> tuple[str, str, str] | None:
    """Note (``A`` to ``G``), accidental as written, and mode (``major`` or ``minor``) of a key; ``None`` without one.

    Accepts more spellings than requests may use (``Bb``, ``Am``, ``c♯ Maj``), since recordings come with keys of any
    source.
    """
    match = _KEY.fullmatch(text or "")
    if not match:
        return None
    mode = match[3] or "major"
    is_minor = mode == "m" or mode.lower().startswith("min")
    return match[1].upper(), match[2], "minor" if is_minor else "major"


def normalize_key(key: str | None) -> str | None:
    """A note, an accidental or none, and a mode, written in full: ``C major``, ``F# minor``."""
    if key is None or not key.strip():
        return None
    text = " ".join(key.split())
    parts = parse_key(text)
    normal = f"{parts[0]}{parts[1]} {parts[2]}" if parts else None
    if normal is None or normal.lower() != text.lower():
        raise ValueError(f"song.key={shorten(key)}: need a note and a mode, such as 'C major' or 'F# minor'")
    return normal


def normalize_time_signature(time_signature: str | int | None) -> str | None:
    """Beats per bar as in the prompt: ``4`` for ``4/4``, ``6`` for ``6/8``."""
    if time_signature is None or not str(time_signature).strip():
        return None
    beats = str(time_signature).strip().split("/")[0]
    if beats not in TIME_SIGNATURES:
        raise ValueError(
            f"song.time_signature={shorten(time_signature)}: need {', '.join(TIME_SIGNATURES)} beats per bar"
        )
    return beats


def _validate_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"song.seed={shorten(seed)}: need a whole number of at least 0, below 2^63")
    return seed
