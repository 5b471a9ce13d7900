"""Oobleck: sizes, errors, and tiled encoding and decoding of any autoencoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import normal
from torch import Tensor

from acestep.audio import tiling
from acestep.audio.tiling import tiled_decode
from acestep.data.encode import TiledEncoder
from acestep.models.autoencoder import Oobleck, OobleckConfig
from acestep.pipeline.pipeline import DECODE_CHUNK, DECODE_OVERLAP
from acestep.training.memory_estimate import AllocationTracker
from acestep.types import Posterior

SEAM = -80.0
REACH = 25
"""Frames, more than half the receptive field of ``TINY``."""
TINY = OobleckConfig(
    encoder_hidden_size=8,
    decoder_input_channels=4,
    decoder_channels=6,
    downsampling_ratios=(2, 4),
    channel_multiples=(1, 2),
    audio_channels=2,
    sampling_rate=800,
)


@pytest.fixture(scope="module")
def oobleck() -> Oobleck:
    autoencoder = Oobleck(TINY).eval().requires_grad_(False)
    autoencoder.init_weights(torch.Generator().manual_seed(0))
    return autoencoder


def test_published_size() -> None:
    with torch.device("meta"):
        autoencoder = Oobleck(OobleckConfig())
    parts = (autoencoder.encoder, autoencoder.decoder)
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [84_281_344, 84_414_082]
    assert [len(part.state_dict()) for part in parts] == [183, 182]
    assert (autoencoder.hop, autoencoder.sample_rate, autoencoder.latent_channels) == (1920, 48_000, 64)


@pytest.mark.parametrize("samples", [8, 15, 16, 83])
def test_latents_have_whole_frames_only(oobleck: Oobleck, samples: int) -> None:
    posterior = oobleck.encode(normal(torch.Generator().manual_seed(0), 2, 2, samples))
    assert posterior.mean.shape == posterior.scale.shape == (2, samples // 8, 4)
    assert (posterior.scale > 0).all()
    assert oobleck.decode(posterior.mean).shape == (2, 2, samples // 8 * 8)


def test_less_than_a_frame_is_an_error(oobleck: Oobleck) -> None:
    with pytest.raises(ValueError, match="7 samples"):
        oobleck.encode(torch.zeros(1, 2, 7))


def test_initialisation_depends_on_the_generator_only(oobleck: Oobleck) -> None:
    again = Oobleck(TINY)
    again.init_weights(torch.Generator().manual_seed(0))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in oobleck.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "colour='red'"),
        ({"channel_multiples": [1, 2, 4]}, "channel_multiples"),
        ({"encoder_hidden_size": 64}, "encoder_hidden_size=64"),
        ({"downsampling_ratios": []}, "downsampling_ratios"),
        ({"downsampling_ratios": [0] * 5}, "downsampling_ratios"),
        ({"audio_channels": 0}, "audio_channels=0"),
    ],
)
def test_invalid_sizes_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OobleckConfig.from_dict({"_class_name": "AutoencoderOobleck"} | changes)


def test_tiling_with_enough_overlap_is_exact(oobleck: Oobleck) -> None:
    latents = normal(torch.Generator().manual_seed(1), 2, 101, 4)
    audio = oobleck.decode(latents)
    torch.testing.assert_close(tiled_decode(oobleck, latents, chunk=60, overlap=25), audio, atol=1e-6, rtol=1e-5)
    expected, tiled = oobleck.encode(audio), _encode_in_tiles(oobleck, audio, chunk=60, overlap=25)
    torch.testing.assert_close(tiled.mean, expected.mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(tiled.scale, expected.scale, atol=1e-6, rtol=1e-5)


@settings(max_examples=12, deadline=None)
@given(
    songs=st.integers(1, 3),
    frames=st.integers(1, 400),
    chunk=st.integers(2 * REACH + 10, 450),
    seed=st.integers(0, 2**16),
)
def test_tiling_error_is_small_at_any_length_and_chunk(
    oobleck: Oobleck, songs: int, frames: int, chunk: int, seed: int
) -> None:
    latents = normal(torch.Generator().manual_seed(seed), songs, frames, 4)
    audio = oobleck.decode(latents)
    assert _decibels(tiled_decode(oobleck, latents, chunk, REACH), audio) < SEAM
    tiled = _encode_in_tiles(oobleck, audio, chunk, REACH)
    assert _decibels(tiled.mean, oobleck.encode(audio).mean) < SEAM


@settings(max_examples=20, deadline=None)
@given(
    ratios=st.lists(st.integers(2, 6), min_size=1, max_size=2),
    songs=st.integers(0, 2),
    frames=st.integers(4, 80),
    rest=st.integers(0, 35),
    core=st.integers(4, 90),
)
def test_windowed_stages_equal_the_whole(ratios: list[int], songs: int, frames: int, rest: int, core: int) -> None:
    config = replace(TINY, downsampling_ratios=tuple(ratios), channel_multiples=(1,) * len(ratios))
    autoencoder = Oobleck(config).eval().requires_grad_(False)
    autoencoder.init_weights(torch.Generator().manual_seed(0))
    audio = normal(torch.Generator().manual_seed(1), songs, 2, frames * config.hop + rest % config.hop)
    # With gradients, stages process the whole song.
    expected = autoencoder.encode(audio).mean
    latents = normal(torch.Generator().manual_seed(2), songs, frames, 4)
    sound = autoencoder.decode(latents)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(tiling, "CPU_WINDOW_ELEMENTS", 0)
        patch.setattr(tiling, "MIN_CORE", core)
        torch.testing.assert_close(autoencoder.encode(audio).mean, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(autoencoder.decode(latents), sound, atol=1e-5, rtol=1e-4)


def test_working_memory_is_independent_of_the_length(oobleck: Oobleck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "CPU_WINDOW_ELEMENTS", 2**12)

    def beside(frames: int) -> tuple[float, float]:
        latents, audio = torch.zeros(1, frames, 4), torch.zeros(1, 2, frames * oobleck.hop)
        with AllocationTracker() as decoding:
            oobleck.decode(latents)
        with AllocationTracker() as encoding:
            oobleck.encode(audio)
        return decoding.peak / audio.nbytes, encoding.peak / audio.nbytes

    with torch.no_grad():
        decoding, encoding = beside(4_000)
    # Pieces of the result and the result; for the encoder, whose result is half as large as the song, the song too.
    assert decoding < 2.4
    assert encoding < 2.2
    # With gradients, everything is kept in memory.
    assert min(beside(4_000)) > 10


@pytest.mark.slow
def test_tiling_error_is_small_at_the_published_rates_and_tiles() -> None:
    config = OobleckConfig(
        encoder_hidden_size=2, decoder_input_channels=1, decoder_channels=1, channel_multiples=(1, 1, 1, 1, 1)
    )
    autoencoder = Oobleck(config).eval().requires_grad_(False)
    autoencoder.init_weights(torch.Generator().manual_seed(0))
    latents = normal(torch.Generator().manual_seed(1), 1, DECODE_CHUNK + 301, 1)
    audio = autoencoder.decode(latents)
    tiled = tiled_decode(autoencoder, latents, DECODE_CHUNK, DECODE_OVERLAP)
    assert _decibels(tiled, audio) < SEAM
    encoder = TiledEncoder()
    audio = audio[..., : (encoder.chunk + 51) * config.hop]
    assert (
        _decibels(
            _encode_in_tiles(autoencoder, audio, encoder.chunk, encoder.overlap).mean, autoencoder.encode(audio).mean
        )
        < SEAM
    )


def _encode_in_tiles(autoencoder: Oobleck, audio: Tensor, chunk: int, overlap: int) -> Posterior:
    encoder = TiledEncoder(chunk=chunk, overlap=overlap)
    return encoder.encode(encoder.tiles([audio], autoencoder), autoencoder)


def _decibels(found: Tensor, expected: Tensor) -> float:
    """Greatest difference relative to the greatest value."""
    assert found.shape == expected.shape
    return float(20 * torch.log10((found - expected).abs().max() / expected.abs().max()))


def test_overlap_as_large_as_the_chunk_is_an_error(oobleck: Oobleck) -> None:
    with pytest.raises(ValueError, match="chunk=8"):
        tiled_decode(oobleck, torch.zeros(1, 20, 4), chunk=8, overlap=64)
