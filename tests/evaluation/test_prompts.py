"""Prompts from folders, lists and the micro world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.prompts import FolderPrompts, ListPrompts, MicroPrompts, song_seed
from acestep.synth import UNSEEN_INSTRUMENT
from acestep.weights.checkpoint import Lengths

LENGTHS = Lengths(min_seconds=5.0, max_seconds=7.0, default_seconds=6.0)


def test_a_folder_gives_words_truth_recording_and_length(world: Path):
    prompts = FolderPrompts(path=str(world)).load(LENGTHS)
    first = prompts[0]
    assert first.song.caption
    assert json.loads(first.truth)["beat_frames"]
    assert first.recording == world / "000000.flac"
    for prompt in prompts:
        own = json.loads(prompt.truth)["frames"] / 25
        assert prompt.song.seconds == (pytest.approx(own) if own <= 7.0 else 6.0)
    assert {prompt.song.seconds for prompt in FolderPrompts(path=str(world), seconds=5.5).load(LENGTHS)} == {5.5}
    assert len(FolderPrompts(path=str(world), limit=2).load(LENGTHS)) == 2


def test_seeds_follow_names_and_not_places(world: Path):
    whole = {prompt.id: prompt.song.seed for prompt in FolderPrompts(path=str(world)).load(LENGTHS)}
    assert len(set(whole.values())) == len(whole)
    assert whole["000001.flac"] == song_seed("000001.flac", 0)
    other = {prompt.id: prompt.song.seed for prompt in FolderPrompts(path=str(world), seed=1).load(LENGTHS)}
    assert not set(whole.values()) & set(other.values())


def test_lists(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"caption": "a", "seconds": 6, "seed": 5}\n\n{"id": "two", "caption": "b", "recording": "x.flac"}\n'
    )
    (tmp_path / "x.flac").touch()
    one, two = ListPrompts(path=str(path)).load(LENGTHS)
    assert (one.id, one.song.seed, one.song.seconds, one.recording) == ("0001", 5, 6, None)
    assert (two.id, two.recording) == ("two", tmp_path / "x.flac")


@pytest.mark.parametrize("songs", [0, -1, "x"])
def test_numbers_of_prompts_are_checked(songs: object):
    with pytest.raises(ValueError, match=f"eval.prompts.songs={songs}: need a whole number of at least 1"):
        MicroPrompts(path="", songs=songs)
    with pytest.raises(ValueError, match=r"eval.prompts.limit=-1"):
        FolderPrompts(path="", limit=-1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"captoin": "a"}', "song 1: song.captoin: no such field; did you mean caption?"),
        ('{"id": "a"}\n{"id": "a"}', "ids must be unique"),
        ("caption: a", "song 1: song: not JSON"),
        ("5", "song 1: song=5: need fields with values"),
        ('{"caption": 5}', "song 1: song.caption=5: need text"),
        ('{"caption": "a", "task": "cover"}', "song 1: has task; prompts may have id, recording, bpm, caption"),
        ('{"recording": "missing.flac"}', "song 1: .*missing.flac: no such recording"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path: Path, text: str, message: str):
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        ListPrompts(path=str(tmp_path / "prompts.jsonl")).load(LENGTHS)


def test_folders_that_hold_no_songs_or_broken_ones(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^eval\.prompts\.path=.*: no audio file in it; put songs there"):
        FolderPrompts(path=str(tmp_path)).load(LENGTHS)
    (tmp_path / "b.flac").write_bytes(b"noise")
    with pytest.raises(
        ValueError, match=r"^eval\.prompts\.path=.*b\.flac: not an audio file .*; mend it or take it out"
    ):
        FolderPrompts(path=str(tmp_path)).load(LENGTHS)
    Audio(torch.zeros(2, 0), 48_000).save(tmp_path / "a.wav")
    with pytest.raises(ValueError, match=r"^eval\.prompts\.path=.*a\.wav: holds no sound; mend it or take it out"):
        FolderPrompts(path=str(tmp_path)).load(LENGTHS)


def test_micro_prompts_are_written_once_and_may_be_of_a_sub_style(tmp_path: Path):
    source = MicroPrompts(path=str(tmp_path / "world"), songs=2, instruments=(UNSEEN_INSTRUMENT,))
    prompts = source.load(LENGTHS)
    assert [json.loads(prompt.truth)["instrument"] for prompt in prompts] == [UNSEEN_INSTRUMENT] * 2
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "world").iterdir())]
    assert source.load(LENGTHS) == prompts
    assert stamps == [path.stat().st_mtime_ns for path in sorted((tmp_path / "world").iterdir())]
