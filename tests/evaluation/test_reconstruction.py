"""Measures of a reconstruction, on differences of known size."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import OOBLECK

from acestep.audio import Audio
from acestep.evaluation.reconstruction import level_error, reconstruct, reconstruction, si_sdr, stereo_errors
from acestep.models.autoencoder import Oobleck, OobleckConfig

SONG = 0.3 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
OTHER = 0.3 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("ratio", [-10.0, 0.0, 20.0])
def test_si_sdr_is_the_ratio_of_song_to_noise_at_any_level(ratio: float) -> None:
    noise = OTHER - (OTHER * SONG).sum(-1, keepdim=True) / SONG.square().sum(-1, keepdim=True) * SONG
    noise *= (SONG.square().sum(-1, keepdim=True) / noise.square().sum(-1, keepdim=True)).sqrt()
    for level in (0.1, 1.0, 3.0):
        assert si_sdr(level * (SONG + noise * 10 ** (-ratio / 20)), SONG) == pytest.approx(ratio, abs=0.1)


def test_level_balance_and_width_are_measured_apart() -> None:
    assert level_error(SONG / 2, SONG) == pytest.approx(20 * math.log10(2), abs=1e-4)
    louder_left = SONG * torch.tensor([[2.0], [1.0]])
    assert stereo_errors(louder_left, SONG)["balance_error_db"] == pytest.approx(20 * math.log10(2), abs=1e-4)
    middle, side = (SONG[0] + SONG[1]) / 2, (SONG[0] - SONG[1]) / 2
    wider = torch.stack([middle + 2 * side, middle - 2 * side])
    assert stereo_errors(wider, SONG)["width_error_db"] == pytest.approx(20 * math.log10(2), abs=1e-4)
    assert all(value < 1e-9 for value in stereo_errors(SONG, SONG).values())


def test_the_song_itself_is_the_best_reconstruction() -> None:
    best, worse = reconstruction(SONG, SONG, 4000), reconstruction(SONG + 0.1 * OTHER, SONG, 4000)
    assert best["si_sdr_db"] > worse["si_sdr_db"]
    assert all(best[name] < worse[name] for name in best.keys() - {"si_sdr_db"})


def test_songs_of_any_rate_are_rebuilt_and_timed() -> None:
    autoencoder = Oobleck(OobleckConfig(**OOBLECK)).eval()
    autoencoder.init_weights(torch.Generator().manual_seed(0))
    found = list(reconstruct(autoencoder, [Audio(SONG, 400), Audio(SONG[:1], 200)]))
    assert [values["seconds"] for values in found] == [10, 20]
    assert all(values["seconds_per_second"] > 0 and math.isfinite(values["si_sdr_db"]) for values in found)
