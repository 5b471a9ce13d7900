"""The micro world's CLAP: tokens, windows, training, file and the shipped weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.embedders.micro_clap import SHIPPED, MicroClap
from acestep.evaluation.embedders.train_micro_clap import fit_micro_clap
from acestep.evaluation.embedders.two_tower import (
    TwoTower,
    TwoTowerConfig,
    load_two_tower,
    save_two_tower,
    text_token_ids,
    train_two_tower,
)
from acestep.songs import Song
from acestep.synth import draw_song, render_song

SMALL = TwoTowerConfig(dimensions=8, width=16)


def test_words_depend_on_caption_key_tempo_and_the_order_of_lyrics():
    song = Song(caption="piano, drums", lyrics="[verse]\nla li", bpm=100, key="C major")
    (base,) = text_token_ids([song], SMALL).tolist()
    assert base == text_token_ids([replace(song, caption="drums piano", seed=4)], SMALL)[0].tolist()
    for changed in ({"caption": "organ, drums"}, {"lyrics": "[verse]\nli la"}, {"bpm": 125}, {"key": "C# major"}):
        assert text_token_ids([replace(song, **changed)], SMALL)[0].tolist() != base, changed
    assert text_token_ids([replace(song, lyrics="la " * 500)], SMALL).shape == (1, SMALL.tokens)


def test_loudness_does_not_matter_and_windows_are_whole(tmp_path: Path):
    towers = TwoTower(TwoTowerConfig())
    towers.init_weights(torch.Generator().manual_seed(0))
    save_two_tower(towers, tmp_path / "towers.safetensors")
    embedder = MicroClap(weights=str(tmp_path / "towers.safetensors"))
    samples = torch.randn(2, 48_000 * 14, generator=torch.Generator().manual_seed(0))
    loud, quiet = embedder.embed_audio(Audio(samples, 48_000)), embedder.embed_audio(Audio(samples / 4, 48_000))
    assert loud.shape == (2, 32)
    torch.testing.assert_close(loud, quiet, atol=1e-3, rtol=0)


def test_training_pairs_songs_with_their_words():
    generator = torch.Generator().manual_seed(0)
    spectra = torch.randn(48, SMALL.bands, 40, generator=generator)
    songs = [Song(caption=f"number{i} word{i % 7}") for i in range(48)]
    towers, losses = train_two_tower(spectra, songs, SMALL, generator, steps=240, batch=24)
    # Over 8 seeds and 3 instruction sets: loss at most .17 of the first, share of right pairs at least .896.
    assert losses[-1] < losses[0] / 3
    match = towers.encode_audio(spectra) @ towers.encode_text(text_token_ids(songs, SMALL)).T
    assert (match.argmax(1) == torch.arange(48)).float().mean() > 0.75


def test_file_round_trip(tmp_path: Path):
    towers = TwoTower(SMALL)
    towers.init_weights(torch.Generator().manual_seed(0))
    tmp_path.chmod(0o755)
    save_two_tower(towers, tmp_path / "towers.safetensors")
    read = load_two_tower(tmp_path / "towers.safetensors")
    assert read.config == SMALL
    assert (tmp_path / "towers.safetensors").stat().st_mode & 0o777 == 0o644, "as readable as its folder"
    torch.testing.assert_close(read.stem.weight, towers.stem.weight, atol=1e-3, rtol=1e-3)
    save_two_tower(read, tmp_path / "again.safetensors")
    names = ("towers", "again")
    first, second = (MicroClap(weights=str(tmp_path / f"{name}.safetensors")).fingerprint for name in names)
    assert first == second
    with pytest.raises(MissingWeightsError, match=r"metrics.clap.embedder.weights=.*no such file"):
        _ = MicroClap(weights=str(tmp_path / "none")).fingerprint


def test_the_recipe_runs():
    assert isinstance(fit_micro_clap(None, songs=4, steps=2), TwoTower)


def test_the_shipped_towers_separate_matching_from_other_descriptions():
    assert SHIPPED.stat().st_size < 300_000
    embedder = MicroClap()
    songs, vectors = [], []
    for index in range(24):
        truth, song = draw_song(777, index)
        songs.append(song)
        vectors.append(embedder.embed_audio(Audio(torch.from_numpy(render_song(truth)), 48_000))[0])
    match = torch.stack(vectors) @ embedder.embed_text(songs).T
    off = (match.sum() - match.diag().sum()) / (24 * 23)
    assert match.diag().mean() - off > 0.5
    # Given the prompts in any other order, the same audio shows no gap between its own and other words.
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    order = torch.where(order == torch.arange(24), order.roll(1), order)
    permuted = match[torch.arange(24), order]
    assert abs(permuted.mean() - off) < 0.1
    assert (match.argmax(1) == torch.arange(24)).float().mean() > 0.7


def test_the_shipped_towers_distinguish_the_order_of_syllables():
    embedder, rng = MicroClap(), np.random.default_rng(5)
    right = []
    for index in range(40):
        truth, song = draw_song(778, index)
        order = rng.permutation(len(truth.syllables))
        shuffled = replace(truth, syllables=tuple(truth.syllables[i] for i in order))
        if shuffled.lyrics != truth.lyrics:
            audio = embedder.embed_audio(Audio(torch.from_numpy(render_song(truth)), 48_000))[0]
            own, other = embedder.embed_text([song, replace(song, lyrics=shuffled.lyrics)]) @ audio
            right.append(bool(own > other))
    assert len(right) > 25
    assert sum(right) / len(right) > 0.85
