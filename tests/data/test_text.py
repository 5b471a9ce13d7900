"""Timed lyrics, caption transforms, sampled tasks, and every format of sidecars and sources."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from data.folder import RATE, Means, write_songs

from acestep.conditioning.prompt import render_prompt
from acestep.data import ExampleConfig, LatentDataset, LatentStore, SampledTask, TaskMix
from acestep.data.captions import CaptionParts, DatasetTag, GenreOnly, ShuffleTags, TagPosition, apply_transforms
from acestep.data.preprocess import Preprocess
from acestep.data.sources import open_source
from acestep.data.text import crop_lyrics, read_lrc, read_sidecars
from acestep.songs.metadata import validate_song

LRC = "[ar:Someone]\n[offset:+500]\n[verse]\n[00:01.50]one\n[00:03.50]two\n\n[chorus]\n[00:05.50][00:09.50]three\n"


def test_lrc_lines_get_times_and_section_tags_stay() -> None:
    lyrics, times = read_lrc(LRC)
    assert lyrics.split("\n") == ["[verse]", "one", "two", "", "[chorus]", "three", "three"]
    assert times == (None, 1.0, 3.0, None, None, 5.0, 9.0)
    assert read_lrc("[verse]\nno times") == ("[verse]\nno times", ())


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 20, "[verse]\none\ntwo\n\n[chorus]\nthree\nthree"),
        (0, 4.2, "[verse]\none\ntwo"),
        (0, 3.9, "[verse]\none"),
        (4.5, 9.2, "[chorus]\nthree"),
        (15, 20, ""),
        (0, 0.9, ""),
    ],
)
def test_a_crop_keeps_the_lines_that_are_sung_in_it(start: float, end: float, expected: str) -> None:
    assert crop_lyrics(*read_lrc(LRC), start, end).replace("\n\n", "\n") == expected.replace("\n\n", "\n")


def test_crops_have_their_timed_lyrics_and_untimed_lyrics_are_marked(tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    songs.mkdir()
    for name in ("timed", "untimed", "instrumental"):
        soundfile.write(songs / f"{name}.wav", np.zeros((12 * RATE, 2)), RATE)
    (songs / "timed.lrc").write_text(LRC, encoding="utf-8")
    (songs / "untimed.lyrics.txt").write_text("all of it", encoding="utf-8")
    Preprocess()(songs, tmp_path / "store", Means)
    dataset = LatentDataset(tmp_path / "store", config=ExampleConfig(crop_frames=100))
    instrumental, timed, untimed = dataset[0], dataset[1], dataset[2]
    assert instrumental.lyrics_match
    assert timed.lyrics_match
    assert not untimed.lyrics_match
    assert untimed.song.lyrics == "all of it"
    texts = {dataset[(epoch, 1)].song.lyrics for epoch in range(40)}
    assert len(texts) > 3
    assert all(len(text) < len(read_lrc(LRC)[0]) for text in texts)
    whole = LatentDataset(tmp_path / "store")[2]
    assert whole.lyrics_match


def test_caption_transforms() -> None:
    random = np.random.default_rng(0)
    parts = CaptionParts("rock, loud, guitar", genre="metal", tag="mine")
    changes = (ShuffleTags(), GenreOnly(rate=0.25), DatasetTag(position=TagPosition.append))
    found = Counter(apply_transforms(parts, changes, random) for _ in range(2000))
    assert 430 < found.pop("metal, mine") < 570
    assert {tuple(sorted(caption.split(", "))) for caption in found} == {("guitar", "loud", "mine", "rock")}
    assert len(found) == 6
    assert all(caption.endswith(", mine") for caption in found)
    assert (
        apply_transforms(CaptionParts("A sentence, with a comma."), (ShuffleTags(),), random)
        == "A sentence, with a comma."
    )
    with pytest.raises(ValueError, match="rate=2"):
        GenreOnly(rate=2)


def test_tasks_have_their_probabilities_and_spans_inside_the_song() -> None:
    mix, random = TaskMix(cover=0.2, repaint=0.3), np.random.default_rng(0)
    draws = [mix(100, random) for _ in range(3000)]
    shares = Counter(draw.task for draw in draws)
    assert shares["cover"] == pytest.approx(600, abs=80)
    assert shares["repaint"] == pytest.approx(900, abs=100)
    spans = [draw.span for draw in draws if draw.span]
    assert len(spans) == shares["repaint"]
    assert all(0 <= a < b <= 100 and 10 <= b - a <= 60 for a, b in spans)
    with pytest.raises(ValueError, match="together at most 1"):
        TaskMix(cover=0.7, repaint=0.7)


def test_an_example_depends_on_seed_epoch_and_song_alone(tmp_path: Path) -> None:
    Preprocess()(write_songs(tmp_path / "songs", 4), tmp_path / "store", Means)
    config = ExampleConfig(captions=(DatasetTag(tag="x"),), tasks=TaskMix(repaint=1.0))
    one, other = (LatentDataset(tmp_path / "store", config=config) for _ in range(2))
    assert [one[(2, n)].task for n in range(4)] == [other[(2, n)].task for n in reversed(range(4))][::-1]
    assert one[(2, 0)].task != one[(3, 0)].task
    assert one[0].song.caption == "x, caption 0"
    assert LatentDataset(tmp_path / "store")[0].task == SampledTask()


def test_sidecars_of_other_trainers(tmp_path: Path) -> None:
    audio = tmp_path / "song.flac"
    (tmp_path / "song.txt").write_text(
        "caption: warm pop\ngenre: pop, soul\nbpm: 96\nkey: A minor\nsignature: 4/4\nis_instrumental: false\n\n"
        "lyrics:\n[Verse]\nkey: of my heart\n",
        encoding="utf-8",
    )
    found = read_sidecars(audio)
    assert (found.song.caption, found.song.bpm, found.song.key, found.song.time_signature) == (
        "warm pop", 96, "A minor", "4/4",
    )  # fmt: skip
    assert found.song.lyrics == "[Verse]\nkey: of my heart"
    assert (found.genre, found.instrumental) == ("pop, soul", False)
    (tmp_path / "song.txt").write_text(
        "<CAPTION>\nwarm pop\n</CAPTION>\n<LYRICS>\nla\nla\n</LYRICS>\n<BPM>96</BPM>\n<LANGUAGE>en</LANGUAGE>",
        encoding="utf-8",
    )
    found = read_sidecars(audio)
    assert (found.song.caption, found.song.lyrics, found.song.bpm, found.song.language) == (
        "warm pop",
        "la\nla",
        96,
        "en",
    )
    (tmp_path / "song.txt").unlink()
    (tmp_path / "song_prompt.txt").write_text("pop, warm", encoding="utf-8")
    (tmp_path / "song_lyrics.txt").write_text("la", encoding="utf-8")
    assert (read_sidecars(audio).song.caption, read_sidecars(audio).song.lyrics) == ("pop, warm", "la")


def _rows(folder: Path) -> list[dict[str, object]]:
    write_songs(folder, 2)
    for path in folder.glob("*.txt"):
        path.unlink()
    return [
        {
            "audio": "song00.wav",
            "prompt": "first",
            "vocal_language": "en",
            "bpm": 100,
            "license": "CC0",
            "split": "train",
        },
        {"audio": "song01.wav", "prompt": "second", "lyrics": "la", "is_instrumental": True, "split": "validation"},
    ]


KINDS = ["jsonl", "json", "csv", "parquet", "upstream", "folder", "tar", "saved", "hub", "v1"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_songs(tmp_path: Path, kind: str) -> None:
    rows = _rows(tmp_path / "songs")
    source = _write(tmp_path / "songs", kind, rows)
    found = open_source(source)
    words = [song.read_text() for song in found.songs]
    assert found.total in (2, 4 if kind == "v1" else None, None)
    assert [entry.song.caption for entry in words] == ["first", "second"]
    assert words[0].song.bpm == 100
    assert (words[0].song.language, words[0].licence, words[1].split) == ("en", "CC0", "validation")
    assert (words[1].instrumental, words[1].song.lyrics) == (True, "")
    outcome = Preprocess()(source, tmp_path / "store", Means)
    assert (outcome.stored, outcome.skipped) == (2, [])
    assert Preprocess()(source, tmp_path / "store", Means).kept == 2


def _write(folder: Path, kind: str, rows: list[dict[str, object]]) -> Path | str:
    if kind in ("jsonl", "folder"):
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return folder if kind == "folder" else folder / "metadata.jsonl"
    if kind in ("json", "upstream"):
        content = rows if kind == "json" else {"metadata": {"custom_tag": "mine"}, "samples": rows}
        (folder / "list.json").write_text(json.dumps(content), encoding="utf-8")
        return folder / "list.json"
    if kind in ("csv", "parquet"):
        table = pa.Table.from_pylist([{**dict.fromkeys({**rows[0], **rows[1]}), **row} for row in rows])
        if kind == "parquet":
            pq.write_table(table, folder / "list.parquet")
        else:
            table.to_pandas().to_csv(folder / "list.csv", index=False)
        return folder / f"list.{kind}"
    if kind == "tar":
        with tarfile.open(folder / "songs-000.tar", "w") as tar:
            for row in rows:
                path = folder / str(row["audio"])
                path.with_suffix(".json").write_text(json.dumps(row), encoding="utf-8")
                tar.add(path, path.name)
                tar.add(path.with_suffix(".json"), path.with_suffix(".json").name)
        return folder / "songs-000.tar"
    columns = {name: [row.get(name) for row in rows] for name in {**rows[0], **rows[1]} if name != "audio"}
    if kind == "v1":  # paths from where the folder lies, and every song again to fill an epoch
        columns["filename"] = [f"{folder.name}/{row['audio']}" for row in rows]
        dataset = datasets.Dataset.from_dict({name: [*values, *values] for name, values in columns.items()})
        dataset.save_to_disk(str(folder.parent / "v1"))
        return folder.parent / "v1"
    columns["audio"] = [{"bytes": (folder / str(row["audio"])).read_bytes(), "path": row["audio"]} for row in rows]
    dataset = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=False))
    if kind == "hub":
        (folder / "hub").mkdir()
        dataset.to_parquet(str(folder / "hub" / "train.parquet"))
        return folder / "hub"
    dataset.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def test_a_row_has_precedence_over_sidecars(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs", 2)
    (songs / "song00.json").write_text('{"bpm": 90, "caption": "from the sidecar"}', encoding="utf-8")
    list_ = [
        {"path": "songs/song00.wav", "prompt": "from the row", "recaption": {}},
        {"path": "songs/song01.wav", "tempo": 80},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, list_)), encoding="utf-8")
    first, second = (song.read_text().song for song in open_source(tmp_path / "list.jsonl").songs)
    assert (first.caption, first.bpm) == ("from the row", 90)
    assert (second.caption, second.bpm) == ("caption 1", 80)


def test_stored_text_is_what_inference_would_render(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs", 2)
    facts = {"keyscale": "c# MINOR", "timesignature": "4/4", "language": "English", "bpm": 90.0}
    (songs / "song00.json").write_text(json.dumps(facts), encoding="utf-8")
    (songs / "song01.json").write_text('{"bpm": 900}', encoding="utf-8")
    outcome = Preprocess(validate=validate_song)(songs, tmp_path / "store", Means)
    song = LatentStore(tmp_path / "store").song(0)
    assert (song.key, song.time_signature, song.language) == ("C# minor", "4", "en")
    assert render_prompt(song) == render_prompt(validate_song(song))
    assert "bpm=900" in outcome.skipped[0].reason
