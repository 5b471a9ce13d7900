"""Truths, their descriptions, and what they sound like."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from acestep.data.sources import describe as described
from acestep.data.sources import find_songs
from acestep.synth import (
    CURATED,
    FACTORS,
    INSTRUMENTS,
    MUSICIAN,
    UNSEEN_INSTRUMENT,
    WEB,
    Annotation,
    draw_song,
    read_truth,
    render,
    write_world,
)
from acestep.synth.world import BEAT_FRAMES, MODES, TONICS, WORDS


def test_a_song_depends_on_its_seed_and_number_alone() -> None:
    first, second = draw_song(3, 7), draw_song(3, 7)
    assert first == second
    assert draw_song(3, 8) != first
    assert draw_song(4, 7) != first
    assert np.array_equal(render(first[0]), render(second[0]))


def test_no_tempo_is_another_ones_octave() -> None:
    ratios = {a / b for a in BEAT_FRAMES for b in BEAT_FRAMES if a != b}
    assert not ratios & {0.5, 2.0}


@pytest.mark.parametrize("index", range(12))
def test_a_song_is_finite_stereo_of_its_length_and_below_full_scale(index: int) -> None:
    truth, song = draw_song(0, index)
    samples = render(truth)
    assert samples.shape == (2, truth.frames * 1920)
    assert np.isfinite(samples).all()
    assert 0.5 < np.abs(samples).max() <= 0.81
    assert song.seconds == truth.seconds


def test_lyrics_hold_every_syllable_under_its_section() -> None:
    truth = draw_song(1, 0)[0]
    tags = [line for line in truth.lyrics.splitlines() if line.startswith("[")]
    words = [word for line in truth.lyrics.splitlines() if not line.startswith("[") for word in line.split()]
    assert tags == [f"[{section}]" for section in truth.sections]
    assert tuple(word.strip(",.").lower() for word in words) == truth.syllables
    assert (words[0][0].isupper(), words[1][-1], words[3][-1]) == (True, ",", ".")
    assert len(truth.slots) == len(truth.syllables)


def test_a_curated_description_is_whole_and_true() -> None:
    for index in range(40):
        truth, song = draw_song(2, index, CURATED)
        words = WORDS[truth.language]
        assert (song.bpm, song.key, song.lyrics) == (truth.bpm, truth.key, truth.lyrics)
        assert all(words[value] in song.caption for value in (truth.instrument, truth.drums, truth.mode))


def test_a_web_description_omits_and_errs_as_often_as_it_says() -> None:
    songs = [draw_song(2, index, WEB) for index in range(600)]
    told = [(song.bpm, truth.bpm) for truth, song in songs]
    missing = sum(bpm is None for bpm, _ in told) / len(told)
    wrong = sum(bpm is not None and bpm != true for bpm, true in told) / sum(bpm is not None for bpm, _ in told)
    assert missing == pytest.approx(WEB.omitted, abs=0.06)
    assert wrong == pytest.approx(WEB.wrong * (1 - 1 / len(BEAT_FRAMES)), abs=0.06)


def test_factors_are_drawn_evenly() -> None:
    counts = Counter(draw_song(5, index)[0].instrument for index in range(600))
    assert set(counts) == set(INSTRUMENTS)
    assert min(counts.values()) > 60


def test_a_probability_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="wrong=1"):
        Annotation(wrong=1.0)


def test_a_written_world_is_any_users_folder(tmp_path) -> None:
    write_world(tmp_path, songs=3, seed=9, instruments=[UNSEEN_INSTRUMENT])
    files = find_songs(tmp_path)
    assert len(files) == 3
    for index, file in enumerate(files):
        truth, song = draw_song(9, index, instruments=[UNSEEN_INSTRUMENT])
        found = described(file)
        assert (found.song.caption, found.song.lyrics, found.song.bpm) == (song.caption, song.lyrics, song.bpm)
        assert read_truth(file.with_suffix(".json").read_text("utf-8")) == truth
        assert soundfile.info(file).frames == truth.frames * 1920


def test_a_longer_world_continues_a_shorter_one(tmp_path) -> None:
    write_world(tmp_path, songs=1, seed=9)
    before = (tmp_path / "000000.flac").stat().st_mtime_ns
    done: list[int] = []
    write_world(tmp_path, songs=2, seed=9, on_song=done.append)
    assert (tmp_path / "000000.flac").stat().st_mtime_ns == before
    assert done == [1, 2]
    with pytest.raises(ValueError, match=r"path=.*holds songs of another seed.*name a new folder"):
        write_world(tmp_path, songs=2, seed=8)
    with pytest.raises(ValueError, match="songs=0"):
        write_world(tmp_path, songs=0)


def test_truth_is_strict_json() -> None:
    truth = draw_song(0, 0)[0]
    assert read_truth(json.dumps(truth.as_dict(), allow_nan=False)) == truth
    assert len(FACTORS) == 7


def test_musicians_tell_tempo_and_key_in_the_caption_in_words_of_their_own() -> None:
    truth, song = draw_song(0, 0, MUSICIAN)
    plain = draw_song(0, 0)[1]
    assert song.caption == f"{plain.caption}, {', '.join(truth.terms)}"
    assert (song.bpm, song.key) == (plain.bpm, plain.key)


@pytest.mark.parametrize(
    ("key", "place"), [("C major", "8B"), ("A minor", "8A"), ("G major", "9B"), ("F minor", "4A"), ("C# minor", "12A")]
)
def test_the_camelot_wheel_turns_by_fifths(key: str, place: str) -> None:
    tonic, mode = key.split()
    assert replace(draw_song(0, 0)[0], tonic=tonic, mode=mode).terms[1] == place


def test_no_two_keys_share_a_place() -> None:
    truth = draw_song(0, 0)[0]
    places = {replace(truth, tonic=tonic, mode=mode).terms[1] for tonic in TONICS for mode in MODES}
    assert len(places) == len(TONICS) * len(MODES)
