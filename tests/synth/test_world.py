"""Factors of micro-world songs, their descriptions and audio."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import soundfile

from acestep.data.sources import find_songs
from acestep.data.text import read_sidecars
from acestep.synth import INSTRUMENTS, UNSEEN_INSTRUMENT, Truth, draw_song, render_song, write_world
from acestep.synth.oracles import FACTORS
from acestep.synth.world import BEAT_FRAMES, CURATED, MODES, MUSICIAN, TONICS, WEB, WORDS, Annotation


def test_a_song_depends_on_seed_and_index_only() -> None:
    first, second = draw_song(3, 7), draw_song(3, 7)
    assert first == second
    assert draw_song(3, 8) != first
    assert draw_song(4, 7) != first
    assert np.array_equal(render_song(first[0]), render_song(second[0]))


def test_no_tempo_is_twice_another() -> None:
    ratios = {a / b for a in BEAT_FRAMES for b in BEAT_FRAMES if a != b}
    assert not ratios & {0.5, 2.0}


@pytest.mark.parametrize("index", range(12))
def test_a_song_is_finite_stereo_of_its_length_and_below_full_scale(index: int) -> None:
    truth, song = draw_song(0, index)
    samples = render_song(truth)
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


def test_curated_descriptions_are_complete_and_correct() -> None:
    for index in range(40):
        truth, song = draw_song(2, index, CURATED)
        words = WORDS[truth.language]
        assert (song.bpm, song.key, song.lyrics) == (truth.bpm, truth.key, truth.lyrics)
        assert all(words[value] in song.caption for value in (truth.instrument, truth.drums, truth.mode))


def test_web_descriptions_omit_and_err_at_the_stated_rates() -> None:
    songs = [draw_song(2, index, WEB) for index in range(600)]
    pairs = [(song.bpm, truth.bpm) for truth, song in songs]
    missing = sum(bpm is None for bpm, _ in pairs) / len(pairs)
    wrong = sum(bpm is not None and bpm != true for bpm, true in pairs) / sum(bpm is not None for bpm, _ in pairs)
    assert missing == pytest.approx(WEB.omitted, abs=0.06)
    assert wrong == pytest.approx(WEB.wrong * (1 - 1 / len(BEAT_FRAMES)), abs=0.06)


def test_factors_are_uniformly_distributed() -> None:
    counts = Counter(draw_song(5, index)[0].instrument for index in range(600))
    assert set(counts) == set(INSTRUMENTS)
    assert min(counts.values()) > 60


def test_a_probability_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="wrong=1"):
        Annotation(wrong=1.0)


def test_a_written_world_is_read_as_a_user_folder(tmp_path) -> None:
    write_world(tmp_path, songs=3, seed=9, instruments=[UNSEEN_INSTRUMENT])
    files = find_songs(tmp_path)
    assert len(files) == 3
    for index, file in enumerate(files):
        truth, song = draw_song(9, index, instruments=[UNSEEN_INSTRUMENT])
        found = read_sidecars(file)
        assert (found.song.caption, found.song.lyrics, found.song.bpm) == (song.caption, song.lyrics, song.bpm)
        assert Truth(**json.loads(file.with_suffix(".json").read_text("utf-8"))["truth"]) == truth
        assert soundfile.info(file).frames == truth.frames * 1920


def test_a_larger_world_keeps_the_songs_of_a_smaller_one(tmp_path) -> None:
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
    assert Truth(**json.loads(json.dumps(asdict(truth), allow_nan=False))) == truth
    assert len(FACTORS) == 7


def test_musician_captions_end_with_tempo_term_and_camelot_key() -> None:
    truth, song = draw_song(0, 0, MUSICIAN)
    plain = draw_song(0, 0)[1]
    assert song.caption == f"{plain.caption}, {', '.join(truth.terms)}"
    assert (song.bpm, song.key) == (plain.bpm, plain.key)


@pytest.mark.parametrize(
    ("key", "place"), [("C major", "8B"), ("A minor", "8A"), ("G major", "9B"), ("F minor", "4A"), ("C# minor", "12A")]
)
def test_camelot_positions_follow_the_circle_of_fifths(key: str, place: str) -> None:
    tonic, mode = key.split()
    assert replace(draw_song(0, 0)[0], tonic=tonic, mode=mode).terms[1] == place


def test_camelot_positions_of_keys_are_unique() -> None:
    truth = draw_song(0, 0)[0]
    places = {replace(truth, tonic=tonic, mode=mode).terms[1] for tonic in TONICS for mode in MODES}
    assert len(places) == len(TONICS) * len(MODES)
