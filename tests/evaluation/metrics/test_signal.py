"""Measures of waveforms whose values are known by construction."""

from __future__ import annotations

import math

import pytest
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.metrics.signal import DurationAdherence, SignalHealth, waveform_measures
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.songs import Song

RATE = 48_000


def sine(seconds: float = 3.0, level: float = 0.5, hz: float = 1000.0) -> torch.Tensor:
    return level * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * RATE)) / RATE)


def test_a_sine():
    scores = waveform_measures(Audio(sine().expand(2, -1), RATE))
    assert scores["peak"] == pytest.approx(20 * math.log10(0.5), abs=0.01)
    assert scores["crest"] == pytest.approx(3.01, abs=0.01)
    # BS.1770: a 997 Hz sine of 0 dBFS in one channel is -3.01 LUFS; both channels add 3 dB.
    assert scores["lufs"] == pytest.approx(-6.02, abs=0.1)
    assert scores["correlation"] == pytest.approx(1.0, abs=1e-4)
    assert scores["mono_loss"] == pytest.approx(0.0, abs=1e-3)
    assert (scores["clipped"], scores["silence"], scores["lead"], scores["tail"]) == (0.0, 0.0, 0.0, 0.0)


def test_defects_are_measured():
    assert waveform_measures(Audio(torch.stack([sine(), -sine()]), RATE))["correlation"] == pytest.approx(
        -1.0, abs=1e-4
    )
    assert waveform_measures(Audio(torch.stack([sine(), -sine()]), RATE))["mono_loss"] > 60
    assert waveform_measures(Audio((3 * sine()).clamp(-1, 1).expand(2, -1), RATE))["clipped"] > 0.3
    assert waveform_measures(Audio(sine(hz=16_000).expand(2, -1), RATE))["treble"] > 0.99
    assert waveform_measures(Audio(sine().expand(2, -1) + 0.1, RATE))["offset"] == pytest.approx(0.1, abs=1e-3)
    silent = waveform_measures(Audio(torch.zeros(2, RATE * 2), RATE))
    assert (silent["lufs"], silent["silence"], silent["lead"], silent["tail"]) == (-70.0, 1.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="NaN"):
        waveform_measures(Audio(torch.full((2, RATE), float("nan")), RATE))


def test_silent_ends_and_songs_that_stop_early():
    samples = torch.cat([torch.zeros(RATE // 2), sine(2.5), torch.zeros(3 * RATE)])
    metric = DurationAdherence()
    features = metric.extract(Audio(samples.expand(2, -1), RATE))
    scores = metric.score(features, EvaluationPrompt(id="a", song=Song(seconds=6.0)))
    assert scores["error"] == pytest.approx(0.0, abs=1e-6)
    assert scores["sounding"] == pytest.approx(0.5, abs=0.01)
    assert scores["early_end"] == 1.0
    assert scores["lead"] == pytest.approx(0.5, abs=0.05)
    assert metric.score(features, EvaluationPrompt(id="a", song=Song(seconds=8.0)))["error"] == pytest.approx(2.0)
    assert not metric.applies(EvaluationPrompt(id="b", song=Song()))


def test_no_value_of_health_is_best():
    metric = SignalHealth()
    names = list(metric.score(metric.extract(Audio(sine().expand(2, -1), RATE)), EvaluationPrompt(id="a", song=Song())))
    assert names[0] == "lufs"
    assert metric.higher_is_better is None
