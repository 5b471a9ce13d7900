"""Oracles against songs they were not fitted on, and against prompts that are not theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from acestep.pipeline.pipeline import Pipeline
from acestep.synth import CHANCE, FACTORS, Oracles, Truth, draw_song, oracles, render
from acestep.synth.oracles import Readout

SHIPPED = Path(oracles.__file__).parents[1] / "assets" / "micro" / "oracles.safetensors"
SONGS = 150


@pytest.fixture(scope="module")
def judge() -> Oracles:
    return Oracles.load(SHIPPED)


@pytest.fixture(scope="module")
def world() -> list[tuple[Truth, torch.Tensor]]:
    truths = [draw_song(771, index)[0] for index in range(SONGS)]
    return [(truth, torch.from_numpy(render(truth))) for truth in truths]


def mean_scores(judge: Oracles, pairs: list[tuple[Truth, torch.Tensor]]) -> dict[str, float]:
    scores = [judge.score(samples, truth) for truth, samples in pairs]
    return {factor: float(np.mean([score[factor] for score in scores])) for factor in FACTORS}


@pytest.mark.slow
def test_every_factor_of_unseen_songs_is_read(judge: Oracles, world) -> None:
    accuracy = mean_scores(judge, world)
    assert min(accuracy.values()) >= 0.98, accuracy


@pytest.mark.slow
def test_the_autoencoder_keeps_what_the_oracles_need(judge: Oracles, world) -> None:
    autoencoder = Pipeline.from_pretrained("micro").autoencoder
    again = [(truth, autoencoder.decode(autoencoder.encode(samples[None]).mean)[0]) for truth, samples in world]
    original, reconstructed = mean_scores(judge, world), mean_scores(judge, again)
    assert all(reconstructed[factor] >= 0.95 * original[factor] for factor in FACTORS), reconstructed


@pytest.mark.slow
def test_other_songs_prompts_score_at_chance(judge: Oracles, world) -> None:
    shuffled = [(truth, samples) for (truth, _), (_, samples) in zip(world, world[1:] + world[:1], strict=True)]
    scores = mean_scores(judge, shuffled)
    for factor in FACTORS:
        spread = (CHANCE[factor] * (1 - CHANCE[factor]) / SONGS) ** 0.5
        assert scores[factor] == pytest.approx(CHANCE[factor], abs=4.5 * spread), factor


def test_silence_and_noise_are_judged_without_complaint(judge: Oracles) -> None:
    truth = draw_song(0, 0)[0]
    for samples in (torch.zeros(2, 96_000), torch.randn(2, 96_000, generator=torch.Generator().manual_seed(0))):
        assert set(judge.score(samples, truth)) == set(FACTORS)


def test_a_readout_separates_what_is_separable() -> None:
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    labels = (rows[:, 0] > rows[:, 1]).long()
    readout = Readout.fit(rows, labels, 2, penalty=1e-5)
    assert (readout(rows) == labels).float().mean() > 0.98


def test_saved_oracles_answer_as_before(judge: Oracles, tmp_path) -> None:
    judge.save(tmp_path / "oracles.safetensors")
    again = Oracles.load(tmp_path / "oracles.safetensors")
    truth = draw_song(0, 1)[0]
    samples = torch.from_numpy(render(truth))
    assert judge.heard(samples, truth) == again.heard(samples, truth)
