"""Tempo and key of recordings whose tempo and key are known."""

from __future__ import annotations

import pytest
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.metrics.key import Key, KeyAdherence, chroma, estimate_key, key_agreement, read_key
from acestep.evaluation.metrics.tempo import TempoAdherence, tempo, tempo_agreement
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.songs import Song
from acestep.synth import draw_song, render_song

RATE = 44_100


@pytest.mark.parametrize(("estimate", "acc1", "acc2"), [(60, 0, 1), (124.7, 1, 1), (125, 0, 0), (360, 0, 1)])
def test_tolerance_and_metrical_levels(estimate: float, acc1: int, acc2: int):
    scores = tempo_agreement(estimate, 120)
    assert (scores["acc1"], scores["acc2"]) == (acc1, acc2)
    assert scores["error"] == pytest.approx(abs(estimate - 120) / 120)


def clicks(bpm: float, seconds: float = 15.0) -> Audio:
    samples = torch.zeros(round(RATE * seconds))
    burst = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * torch.exp(-torch.arange(2000) / 400)
    place = 0.0
    while place + 2000 < len(samples):
        samples[round(place) : round(place) + 2000] += burst
        place += 60 * RATE / bpm
    return Audio(samples[None], RATE)


@pytest.mark.parametrize("bpm", [72.0, 90.0, 117.3, 128.0, 150.0])
def test_tempo_of_clicks(bpm: float):
    assert tempo(clicks(bpm)) == pytest.approx(bpm, rel=0.003)


def test_silence_and_short_sounds_have_no_tempo():
    assert tempo(Audio(torch.zeros(2, RATE * 5), RATE)) == 0.0
    assert tempo(Audio(torch.ones(2, 100), RATE)) == 0.0


def test_key_names():
    assert read_key("F# minor") == Key(6, "minor")
    assert read_key("Gb") == Key(6, "major")
    assert read_key("c♯ Maj") == Key(1, "major")
    assert read_key("Am") == Key(9, "minor")
    assert read_key("Cb minor") == Key(11, "minor")
    assert read_key("H major") is None
    assert read_key(None) is None


@pytest.mark.parametrize(
    ("estimate", "weight"),
    [
        ("C major", 1.0), ("G major", 0.5), ("F major", 0.5), ("A minor", 0.3), ("C minor", 0.2), ("E minor", 0.0),
        ("D major", 0.0),
    ],
)  # fmt: skip
def test_weights_of_neighbouring_keys(estimate: str, weight: float):
    assert key_agreement(read_key(estimate), read_key("C major"))["mirex"] == weight
    assert key_agreement(read_key("C minor"), read_key("Eb major"))["mirex"] == 0.3


def chords(tonic: int, mode: str) -> Audio:
    """Tonic, subdominant, dominant, tonic: a cadence of sines with three partials each."""
    triad = (0, 4, 7) if mode == "major" else (0, 3, 7)
    time = torch.arange(RATE) / RATE
    parts = []
    for root, steps in ((0, triad), (5, triad), (7, (0, 4, 7)), (0, triad)):
        hz = [261.63 * 2 ** ((tonic + root + step) / 12) for step in steps] + [130.81 * 2 ** ((tonic + root) / 12)]
        parts.append(sum(0.1 / n * torch.sin(2 * torch.pi * n * f * time) for f in hz for n in (1, 2, 3)))
    return Audio(torch.cat(parts)[None], RATE)


@pytest.mark.parametrize(("tonic", "mode"), [(0, "major"), (6, "major"), (9, "minor"), (1, "minor")])
def test_key_of_cadences(tonic: int, mode: str):
    assert estimate_key(chroma(chords(tonic, mode))) == Key(tonic, mode)


@pytest.mark.slow
def test_trackers_on_songs_of_known_truth():
    """Level of chance: 0.08 for tempo within 4 %, 1/24 for the key."""
    tempi, keys = [], []
    for index in range(16):
        truth, song = draw_song(5, index)
        audio = Audio(torch.from_numpy(render_song(truth)), 48_000)
        prompt = EvaluationPrompt(id=str(index), song=song)
        for metric, scores in ((TempoAdherence(), tempi), (KeyAdherence(), keys)):
            assert metric.applies(prompt)
            scores.append(metric.score(metric.extract(audio), prompt))
    assert sum(score["acc2"] for score in tempi) / 16 >= 0.9
    assert sum(score["acc1"] for score in tempi) / 16 >= 0.6
    assert sum(score["exact"] for score in keys) / 16 >= 0.75
    bare = EvaluationPrompt(id="bare", song=Song(caption="a"))
    assert not TempoAdherence().applies(bare)
    assert not KeyAdherence().applies(bare)
