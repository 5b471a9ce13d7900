"""Corruptions leave a song alone at level 0, grow with the level, and repeat themselves."""

from __future__ import annotations

import pytest
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.corruptions import CORRUPTIONS
from acestep.evaluation.metrics.tempo import tempo

RATE = 24_000


def song() -> Audio:
    """Noise bursts twice a second over a chord, in stereo."""
    time = torch.arange(RATE * 4) / RATE
    chord = sum(torch.sin(2 * torch.pi * hz * time) for hz in (220.0, 277.2, 329.6, 3000.0))
    burst = torch.randn(len(time), generator=torch.Generator().manual_seed(0)) * torch.exp(-20 * (time % 0.5))
    return Audio(0.1 * torch.stack([chord + 2 * burst, chord - burst]), RATE)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_nothing_at_0_and_more_at_every_level(name: str):
    original = song()

    def corrupted(level: float) -> torch.Tensor:
        return CORRUPTIONS[name](original, level, torch.Generator().manual_seed(3)).samples

    assert torch.equal(corrupted(0.0), original.samples)
    assert torch.equal(corrupted(0.5), corrupted(0.5))
    assert corrupted(1.0).shape == original.samples.shape
    likeness = [
        float(torch.nn.functional.cosine_similarity(corrupted(level).flatten(), original.samples.flatten(), dim=0))
        for level in (0.0, 0.3, 0.6, 1.0)
    ]
    if name != "slowing":
        assert likeness == sorted(likeness, reverse=True)
    assert likeness[-1] < 0.9
    assert corrupted(1.0).abs().max() <= 1.0


def test_slowing_slows():
    slow = CORRUPTIONS["slowing"](song(), 0.5, torch.Generator())
    assert tempo(song()) == pytest.approx(120.0, rel=0.01)
    assert tempo(slow) == pytest.approx(96.0, rel=0.02)
