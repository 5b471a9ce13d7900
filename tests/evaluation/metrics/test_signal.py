"""Measures of waveforms that are known by construction."""

from __future__ import annotations

import math

import pytest
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.metrics.signal import DurationAdherence, SignalHealth, measure
from acestep.evaluation.prompts import Prompt
from acestep.types import Song

RATE = 48_000


def sine(seconds: float = 3.0, level: float = 0.5, hz: float = 1000.0) -> torch.Tensor:
    return level * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * RATE)) / RATE)


def test_a_sine():
    found = measure(Audio(sine().expand(2, -1), RATE))
    assert found["peak"] == pytest.approx(20 * math.log10(0.5), abs=0.01)
    assert found["crest"] == pytest.approx(3.01, abs=0.01)
    # BS.1770: a 997 Hz sine of 0 dBFS in one channel is -3.01 LUFS; both channels add 3 dB.
    assert found["lufs"] == pytest.approx(-6.02, abs=0.1)
    assert found["correlation"] == pytest.approx(1.0, abs=1e-4)
    assert found["mono_loss"] == pytest.approx(0.0, abs=1e-3)
    assert (found["clipped"], found["silence"], found["lead"], found["tail"]) == (0.0, 0.0, 0.0, 0.0)


def test_what_goes_wrong_stands_out():
    assert measure(Audio(torch.stack([sine(), -sine()]), RATE))["correlation"] == pytest.approx(-1.0, abs=1e-4)
    assert measure(Audio(torch.stack([sine(), -sine()]), RATE))["mono_loss"] > 60
    assert measure(Audio((3 * sine()).clamp(-1, 1).expand(2, -1), RATE))["clipped"] > 0.3
    assert measure(Audio(sine(hz=16_000).expand(2, -1), RATE))["treble"] > 0.99
    assert measure(Audio(sine().expand(2, -1) + 0.1, RATE))["offset"] == pytest.approx(0.1, abs=1e-3)
    silent = measure(Audio(torch.zeros(2, RATE * 2), RATE))
    assert (silent["lufs"], silent["silence"], silent["lead"], silent["tail"]) == (-70.0, 1.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="NaN"):
        measure(Audio(torch.full((2, RATE), float("nan")), RATE))


def test_silent_ends_and_songs_that_stop_early():
    samples = torch.cat([torch.zeros(RATE // 2), sine(2.5), torch.zeros(3 * RATE)])
    scorer = DurationAdherence().load()
    heard = scorer.ear.hear(Audio(samples.expand(2, -1), RATE))
    found = scorer.score(heard, Prompt(id="a", song=Song(seconds=6.0)))
    assert found["error"] == pytest.approx(0.0, abs=1e-6)
    assert found["sounding"] == pytest.approx(0.5, abs=0.01)
    assert found["early_end"] == 1.0
    assert found["lead"] == pytest.approx(0.5, abs=0.05)
    assert scorer.score(heard, Prompt(id="a", song=Song(seconds=8.0)))["error"] == pytest.approx(2.0)
    assert not scorer.applies(Prompt(id="b", song=Song()))


def test_no_value_of_health_is_best():
    scorer = SignalHealth().load()
    names = list(scorer.score(scorer.ear.hear(Audio(sine().expand(2, -1), RATE)), Prompt(id="a", song=Song())))
    assert names[0] == "lufs"
    assert scorer.goal == "neither"
