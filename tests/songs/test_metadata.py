"""Normalisation of metadata, and one-line errors for invalid values."""

from __future__ import annotations

import math
from typing import Any

import pytest

from acestep.songs import Song
from acestep.songs.metadata import LANGUAGES, validate_song


def test_all_published_languages() -> None:
    assert len(LANGUAGES) == 51
    for code, name in LANGUAGES.items():
        assert validate_song(Song(language=code)).language == code
        assert validate_song(Song(language=f" {name.upper()} ")).language == code


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"key": "f#  Minor"}, {"key": "F# minor"}),
        ({"key": "B♭ major"}, {"key": "B♭ major"}),
        ({"key": " "}, {"key": None}),
        ({"time_signature": "6/8"}, {"time_signature": "6"}),
        ({"time_signature": 4}, {"time_signature": "4"}),
        ({"time_signature": ""}, {"time_signature": None}),
        ({"bpm": 120.0}, {"bpm": 120}),
    ],
)
def test_metadata_is_normalised(given: dict[str, Any], kept: dict[str, Any]) -> None:
    assert validate_song(Song(**given)) == Song(**kept)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"language": "germn"}, r"song.language=germn: .* did you mean de \(German\)\?"),
        ({"language": "qqqq"}, r"song.language=qqqq: .* use ar az"),
        ({"bpm": 29}, r"song.bpm=29: need a whole number from 30 to 300"),
        ({"bpm": 301}, r"song.bpm=301"),
        ({"bpm": 99.5}, r"song.bpm=99.5"),
        ({"bpm": math.nan}, r"song.bpm=nan"),
        ({"bpm": "fast"}, r"song.bpm=fast"),
        ({"key": "H major"}, r"song.key=H major: need a note and a mode"),
        ({"key": "C"}, r"song.key=C:"),
        ({"time_signature": "5/4"}, r"song.time_signature=5/4: .* 2, 3, 4, 6"),
        ({"seed": -1}, r"song.seed=-1"),
        ({"seed": True}, r"song.seed=True"),
    ],
)
def test_invalid_metadata_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        validate_song(Song(**given))
