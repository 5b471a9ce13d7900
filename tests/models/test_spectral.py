"""The spectral autoencoder: features of simple signals, and reconstruction."""

from __future__ import annotations

import math

import pytest
import torch

from acestep.audio.tiling import tiled_decode
from acestep.models.spectral import SpectralAutoencoder, SpectralConfig
from acestep.synth import draw_song, render_song


@pytest.fixture(scope="module")
def autoencoder() -> SpectralAutoencoder:
    songs = [torch.from_numpy(render_song(draw_song(1, index)[0]))[None] for index in range(12)]
    made = SpectralAutoencoder(SpectralConfig())
    made.fit(torch.cat([made.features(song)[0] for song in songs]))
    return made


def tone(hz: float, seconds: float = 1.6) -> torch.Tensor:
    time = torch.arange(round(48_000 * seconds)) / 48_000
    return 0.3 * torch.sin(2 * math.pi * hz * time).expand(1, 2, -1)


@pytest.mark.parametrize("note", [40, 57, 69, 88, 105])
def test_a_tone_appears_at_its_semitone_with_its_amplitude(autoencoder: SpectralAutoencoder, note: int) -> None:
    features = autoencoder.features(tone(440 * 2 ** ((note - 69) / 12)))[0, 10:-10].mean(0)
    notes = features[: autoencoder.config.notes]
    assert notes.argmax() == note - autoencoder.config.lowest_note
    assert 10 ** (notes.max() - 3) == pytest.approx(0.3 * math.sqrt(2), rel=0.05)


def test_shapes_whole_frames_and_batches(autoencoder: SpectralAutoencoder) -> None:
    audio = torch.randn(3, 2, 20 * 1920 + 700, generator=torch.Generator().manual_seed(0)) * 0.1
    posterior = autoencoder.encode(audio)
    assert posterior.mean.shape == posterior.scale.shape == (3, 20, 64)
    assert (posterior.scale == autoencoder.config.posterior_scale).all()
    decoded = autoencoder.decode(posterior.mean)
    assert decoded.shape == (3, 2, 20 * 1920)
    alone = autoencoder.decode(autoencoder.encode(audio[1:2]).mean)
    torch.testing.assert_close(decoded[1:2], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("frames", [40, 97])
def test_tiled_decoding_equals_the_whole_song(autoencoder: SpectralAutoencoder, frames: int) -> None:
    latents = torch.randn(2, frames, 64, generator=torch.Generator().manual_seed(frames))
    tiled = tiled_decode(autoencoder, latents, chunk=24, overlap=4)
    torch.testing.assert_close(tiled, autoencoder.decode(latents), atol=2e-5, rtol=0)


def test_reconstruction_keeps_spectrum_and_stereo(autoencoder: SpectralAutoencoder) -> None:
    audio = torch.from_numpy(render_song(draw_song(1, 40)[0]))[None]
    again = autoencoder.decode(autoencoder.encode(audio).mean)
    before, after = autoencoder.features(audio), autoencoder.features(again)
    assert (before - after).abs().mean() < 0.25 * before.std()
    left = torch.cat([audio[:, :1], 0.2 * audio[:, 1:]], 1)
    sides = autoencoder.decode(autoencoder.encode(left).mean)[0].square().mean(1)
    assert sides[0] > 1.2 * sides[1]


def test_latents_have_unit_variance_on_average(autoencoder: SpectralAutoencoder) -> None:
    songs = [torch.from_numpy(render_song(draw_song(1, index)[0]))[None] for index in range(12)]
    latents = torch.cat([autoencoder.encode(song).mean[0] for song in songs])
    assert latents.var(0).mean() == pytest.approx(1.0, rel=0.02)


def test_whitening_one_gives_every_channel_the_same_variance() -> None:
    made = SpectralAutoencoder(SpectralConfig())
    rows = torch.randn(4000, made.config.features, generator=torch.Generator().manual_seed(0))
    rows = rows * torch.linspace(0.1, 2, made.config.features)
    made.fit(rows, whitening=1.0)
    variances = ((rows - made.mean) @ made.analysis).var(0)
    torch.testing.assert_close(variances, torch.ones(64), atol=1e-3, rtol=0)


def test_more_channels_than_features_are_an_error() -> None:
    with pytest.raises(ValueError, match="latent_channels=100"):
        SpectralConfig(latent_channels=100)
