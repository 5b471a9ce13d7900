"""The pipeline: independence of the batch, validation, saving, audio levels."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import write_tiny

import acestep
import acestep.pipeline.pipeline as pipeline_module
import acestep.types
from acestep.adapters import LoRA, save_adapter
from acestep.audio.loudness import Normalize, loudness, normalize_level
from acestep.flow import APG, SDE, Euler, NoGuidance, Sampler, Shifted
from acestep.pipeline.build import weights_fingerprint
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song
from acestep.weights.open import folder_hash

SONGS = [
    Song(caption="loud guitar", seconds=0.5, seed=3),
    Song(caption="a longer caption", lyrics="[verse]\nla la", seconds=1.0, seed=4, language="English", bpm=120),
    Song(caption="piano", seconds=0.64, seed=3, key="f# Minor"),
]
SAMPLER = Sampler(Shifted(steps=3, shift=2.0), Euler(), APG(scale=3.0))


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny)


@pytest.mark.parametrize("solver", [Euler(), SDE()])
def test_a_song_does_not_depend_on_its_batch(pipeline: Pipeline, solver: Euler | SDE) -> None:
    songs = [pipeline.resolve(song) for song in SONGS]
    sampler = Sampler(Shifted(steps=3, shift=2.0), solver, APG(scale=3.0))
    together = pipeline.latents(songs, sampler)
    for song, latents in zip(songs, together, strict=True):
        (alone,) = pipeline.latents([song], sampler)
        torch.testing.assert_close(latents, alone, atol=1e-5, rtol=1e-5)


def test_audio_comes_in_order_with_its_request(pipeline: Pipeline) -> None:
    made = list(pipeline.generate(SONGS, SAMPLER, batch_size=2))
    assert [audio.song.caption for audio in made] == [song.caption for song in SONGS]
    assert [audio.seconds for audio in made] == [0.48, 1.0, 0.64]
    assert made[0].song.seconds == 0.48
    assert made[1].song.language == "en"
    assert made[2].song.key == "F# minor"
    for audio in made:
        assert audio.samples.shape[0] == 2
        assert audio.samples.abs().max() <= 1


def test_seeds_and_samplers_matter(pipeline: Pipeline) -> None:
    first, second = (pipeline.latents([pipeline.resolve(Song(seed=seed))])[0] for seed in (0, 1))
    assert not torch.allclose(first, second, atol=0.1)
    other = pipeline.latents([pipeline.resolve(Song(seed=0))], Sampler(Shifted(steps=2), Euler(), NoGuidance()))[0]
    assert not torch.allclose(first, other, atol=1e-3)


def test_songs_during_training(tiny: Path) -> None:
    pipeline = Pipeline.from_pretrained(tiny)
    LoRA(rank=2, dropout=0.5)(pipeline.network.decoder, torch.Generator().manual_seed(0))
    song = pipeline.resolve(Song())
    pipeline.network.train()
    torch.testing.assert_close(pipeline.latents([song])[0], pipeline.latents([song])[0], atol=0, rtol=0)
    assert pipeline.network.training


def test_length_and_sampler_default_to_the_checkpoints(pipeline: Pipeline) -> None:
    assert pipeline.resolve(Song()).seconds == pipeline.lengths.default_seconds
    assert pipeline.sampler.schedule == Shifted(steps=2, shift=1.0)


@pytest.mark.parametrize(
    ("song", "says"),
    [
        (Song(seconds=700), r"song.seconds=700: this checkpoint makes 0.2 to 4 s"),
        (Song(seconds=0.1), r"song.seconds=0.1"),
        (Song(seconds=float("nan")), r"song.seconds=nan"),
        (Song(bpm=1000), r"song.bpm=1000"),
    ],
)
def test_an_invalid_song_is_refused_before_any_is_generated(pipeline: Pipeline, song: Song, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pipeline.generate([Song(), song])
    with pytest.raises(ValueError, match="batch_size=0"):
        pipeline.generate([Song()], batch_size=0)


def test_a_saved_pipeline_gives_the_same_song(pipeline: Pipeline, tmp_path: Path) -> None:
    again = Pipeline.from_pretrained(pipeline.save(tmp_path / "run" / "weights").parent)
    (here,), (there,) = (list(each.generate(SONGS[:1])) for each in (pipeline, again))
    assert torch.equal(here.samples, there.samples)
    half = Pipeline.from_pretrained(pipeline.save(tmp_path / "half", torch.float16), dtype="bfloat16")
    assert next(half.network.parameters()).dtype is torch.bfloat16
    assert next(iter(half.generate(SONGS[:1]))).samples.isfinite().all()


def test_audio_of_any_kind_is_encoded(pipeline: Pipeline) -> None:
    mono = acestep.Audio(torch.randn(1, 22_050).clamp(-1, 1), 44_100)
    posterior = pipeline.encode(mono)
    assert posterior.mean.shape == (1, 12, 64)
    assert pipeline.decode(posterior.mean).shape == (1, 2, 12 * 1920)


def test_the_examples_run() -> None:
    assert doctest.testmod(pipeline_module) == (0, 4)


def test_a_warning_names_its_song(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    next(pipeline.generate([acestep.Request(name="long", lyrics="la " * 50, seconds=0.4)], SAMPLER))
    assert "long: song.lyrics: singing them takes about 17 s, the song lasts 0.4 s" in caplog.text


def test_levels(caplog: pytest.LogCaptureFixture) -> None:
    loud, quiet, silent = torch.tensor([[2.0, -4.0]]), torch.tensor([[0.1]]), torch.zeros(1, 3)
    assert float(normalize_level(loud, Normalize.none, 48_000, "x").abs().max()) == 1
    assert "x: its peak of 4.00 would clip; it was turned down by 12.0 dB" in caplog.text
    assert normalize_level(quiet, Normalize.none, 48_000) is quiet
    for samples in (loud, quiet):
        assert float(normalize_level(samples, Normalize.peak, 48_000).abs().max()) == pytest.approx(10 ** (-1 / 20))
    assert normalize_level(silent, Normalize.peak, 48_000) is silent
    assert "is silent" in caplog.text


def test_loudness_is_set_where_the_peak_allows_it(caplog: pytest.LogCaptureFixture) -> None:
    tone = torch.sin(6.2832 * 997 * torch.arange(96_000) / 48_000).repeat(2, 1)
    assert loudness(tone, 48_000) == pytest.approx(0.0, abs=0.1)  # BS.1770-4: 0 dBFS at 997 Hz on both sides
    assert loudness(normalize_level(0.01 * tone, Normalize.lufs, 48_000), 48_000) == pytest.approx(-14.0, abs=0.05)
    assert not caplog.text
    spiked = 0.001 * tone
    spiked[:, 40_000] = 1.0
    assert float(normalize_level(spiked, Normalize.lufs, 48_000).abs().max()) == pytest.approx(10 ** (-1 / 20))
    assert "at -14 LUFS it would clip" in caplog.text
    assert loudness(tone[:, :100], 48_000) == float("-inf")


def test_package_attributes_are_imported_lazily() -> None:
    assert acestep.Pipeline is Pipeline
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'"):
        acestep.Pipelin  # noqa: B018 (the access is the test)
    for package, name in (("acestep.audio", "Audio"), ("acestep.pipeline", "Pipeline"), ("acestep.songs", "Song")):
        assert getattr(importlib.import_module(package), name) is getattr(acestep, name)
    assert acestep.types.Song is Song, "the former address"
    code = "import sys, acestep; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_adapter_is_loaded_on_its_base(pipeline: Pipeline, tiny: Path, tmp_path: Path) -> None:
    adapted = Pipeline.from_pretrained(tiny)
    generator = torch.Generator().manual_seed(0)
    LoRA(rank=2)(adapted.network.decoder, generator)
    for name, parameter in adapted.network.decoder.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator)
    run = tmp_path / "run"
    save_adapter(adapted.network.decoder, run / "weights", str(tiny))
    loaded = Pipeline.from_pretrained(run)
    here, there, base = (each.latents([each.resolve(SONGS[0])])[0] for each in (adapted, loaded, pipeline))
    assert torch.equal(here, there)
    assert not torch.allclose(here, base, atol=1e-3)
    assert weights_fingerprint(run) not in (weights_fingerprint(tiny), folder_hash(run / "weights"))


def test_another_checkpoints_autoencoder_decodes_the_same_latents(pipeline: Pipeline, tmp_path: Path) -> None:
    other = Pipeline.from_pretrained(write_tiny(tmp_path / "other", seed=1))
    swapped = pipeline.with_autoencoder(other.save(tmp_path / "saved"))
    assert torch.equal(swapped.latents(SONGS[:1], SAMPLER)[0], pipeline.latents(SONGS[:1], SAMPLER)[0])
    latents = torch.randn(1, 20, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(swapped.decode(latents), other.decode(latents))
    assert not torch.equal(swapped.decode(latents), pipeline.decode(latents))
    again = Pipeline.from_pretrained(swapped.save(tmp_path / "swapped"))
    assert torch.equal(again.decode(latents), other.decode(latents))
