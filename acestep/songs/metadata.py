"""What a song's metadata may say: languages, tempo, key, time signature. Knows the rules; changes no meaning.

Source: upstream ``constants.py`` (``VALID_LANGUAGES``, ``KEYSCALE_NOTES``, ``BPM_MIN`` and its neighbours).
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from difflib import get_close_matches

from acestep.songs.song import Song, shown

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

_CODES = {name.lower(): code for code, name in LANGUAGES.items()} | {code: code for code in LANGUAGES}
_KEY = re.compile(r"(?P<note>[A-Ga-g])(?P<accidental>[#b♯♭]?) (?P<mode>major|minor)", re.IGNORECASE)


def checked(song: Song) -> Song:
    """``song`` with its metadata in the form that the prompts were trained on; ``ValueError`` names what cannot be."""
    if song.seconds is not None and not math.isfinite(song.seconds):
        raise ValueError(f"song.seconds={song.seconds}: need a number of seconds")
    return replace(
        song,
        language=checked_language(song.language),
        bpm=checked_bpm(song.bpm),
        key=checked_key(song.key),
        time_signature=checked_time_signature(song.time_signature),
        seed=_checked_seed(song.seed),
    )


def checked_language(language: str) -> str:
    """The code of a language given by code (``pt``, ``pt-BR``) or English name, in any case."""
    wanted = str(language).strip().lower()
    for known in (wanted, re.split(r"[-_]", wanted)[0]):
        if known in _CODES:
            return _CODES[known]
    near = get_close_matches(wanted, _CODES, n=1, cutoff=0.5)
    hint = f"did you mean {_CODES[near[0]]} ({LANGUAGES[_CODES[near[0]]]})?" if near else f"use {' '.join(LANGUAGES)}"
    raise ValueError(f"song.language={shown(language)}: not a language that the model knows; {hint}")


def checked_bpm(bpm: float | None) -> int | None:
    """Whole beats per minute, 30 to 300."""
    if bpm is None:
        return None
    if isinstance(bpm, (bool, str)) or not math.isfinite(bpm) or bpm != int(bpm) or not MIN_BPM <= bpm <= MAX_BPM:
        raise ValueError(
            f"song.bpm={shown(bpm)}: need a whole number from {MIN_BPM} to {MAX_BPM}; leave it out if unsure"
        )
    return int(bpm)


def checked_key(key: str | None) -> str | None:
    """A note, an accidental or none, and a mode: ``C major``, ``F# minor``."""
    if key is None or not key.strip():
        return None
    found = _KEY.fullmatch(" ".join(key.split()))
    if not found:
        raise ValueError(f"song.key={shown(key)}: need a note and a mode, such as 'C major' or 'F# minor'")
    return f"{found['note'].upper()}{found['accidental']} {found['mode'].lower()}"


def checked_time_signature(time_signature: str | int | None) -> str | None:
    """The beats of a bar as the prompt writes them: ``4`` for ``4/4``, ``6`` for ``6/8``."""
    if time_signature is None or not str(time_signature).strip():
        return None
    beats = str(time_signature).strip().split("/")[0]
    if beats not in TIME_SIGNATURES:
        raise ValueError(
            f"song.time_signature={shown(time_signature)}: the model knows {', '.join(TIME_SIGNATURES)} beats in a bar"
        )
    return beats


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"song.seed={shown(seed)}: need a whole number of at least 0, below 2^63")
    return seed
