from __future__ import annotations

import json
from pathlib import Path

import pytest

from acestep.data.sources import find_songs
from acestep.data.text import read_sidecars
from acestep.songs import Song


def beside(folder: Path, **texts: str) -> Path:
    """``song.flac`` in ``folder`` with sidecars, named with ``_`` for ``.``."""
    for suffix, text in texts.items():
        (folder / f"song.{suffix.replace('_', '.')}").write_text(text, encoding="utf-8")
    return folder / "song.flac"


def test_all_sidecars(tmp_path: Path) -> None:
    facts = {"bpm": 90, "keyscale": "A minor", "timesignature": 3, "language": "de", "truth": {"tempo": 90}}
    found = read_sidecars(beside(tmp_path, txt="A waltz.\n", lyrics_txt="[verse]\nla\n", json=json.dumps(facts)))
    assert found.song == Song(
        caption="A waltz.", lyrics="[verse]\nla", language="de", bpm=90, key="A minor", time_signature="3"
    )
    assert json.loads(found.truth) == {"tempo": 90}


@pytest.mark.parametrize(
    ("texts", "caption", "lyrics"),
    [
        ({"txt": "plain"}, "plain", ""),
        ({"txt": "plain", "lyrics_txt": "sung"}, "plain", "sung"),
        ({"txt": "plain", "caption_txt": "a caption"}, "a caption", "plain"),
        ({"txt": "plain", "json": '{"caption": "a caption"}'}, "a caption", "plain"),
        ({"txt": "plain", "caption_txt": "a caption", "lyrics_txt": "sung"}, "a caption", "sung"),
        ({"caption_txt": "a caption", "json": '{"caption": "other"}'}, "other", ""),
        ({"txt": "[verse]\nsung"}, "song", "[verse]\nsung"),
        ({"txt": "plain", "json": '{"caption": "a caption", "lyrics": "sung"}'}, "a caption", "sung"),
        ({"lyrics_txt": "[00:01.50] sung\n[01:02] on"}, "song", "sung\non"),
        ({}, "song", ""),
    ],
)
def test_which_text_is_the_caption(tmp_path: Path, texts: dict[str, str], caption: str, lyrics: str) -> None:
    song = read_sidecars(beside(tmp_path, **texts)).song
    assert (song.caption, song.lyrics) == (caption, lyrics)


def test_a_song_without_text_is_captioned_by_its_name(tmp_path: Path) -> None:
    assert read_sidecars(tmp_path / "my_old.song - take 2.ogg").song == Song(caption="my old song take 2")


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    path = beside(tmp_path)
    path.with_suffix(".txt").write_bytes("ein Lied".encode("utf-8-sig"))
    assert read_sidecars(path).song.caption == "ein Lied"


@pytest.mark.parametrize(
    ("json_text", "message"),
    [("{", "not JSON"), ("[1]", "one JSON object"), ('{"bpm": "fast"}', "bpm='fast'"), ('{"bpm": 1e999}', "bpm")],
)
def test_a_broken_sidecar_is_reported(tmp_path: Path, json_text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_sidecars(beside(tmp_path, json=json_text))


def test_text_in_another_encoding_is_reported(tmp_path: Path) -> None:
    path = beside(tmp_path)
    path.with_suffix(".txt").write_bytes("Mädchen".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_sidecars(path)


def test_find_songs_searches_all_but_hidden_folders(tmp_path: Path) -> None:
    for name in ("b.flac", "a/c.MP3", "a/d.txt", ".hidden/e.wav", ".f.wav", "ü ñ.ogg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in find_songs(tmp_path)] == ["a/c.MP3", "b.flac", "ü ñ.ogg"]


@pytest.mark.parametrize(("name", "message"), [("", "no audio file"), ("missing", "not a folder")])
def test_a_folder_without_songs_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_songs(tmp_path / name)
