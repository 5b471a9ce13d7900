"""Accuracy of the oracles on songs they were not fitted to, and on prompts of other songs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from acestep.pipeline.pipeline import Pipeline
from acestep.synth import CHANCE, Oracles, Truth, draw_song, oracles, render_song
from acestep.synth.oracles import FACTORS, LogisticRegression

SHIPPED = Path(oracles.__file__).parents[1] / "assets" / "micro" / "oracles.safetensors"
SONGS = 150


@pytest.fixture(scope="module")
def fitted() -> Oracles:
    return Oracles.load(SHIPPED)


@pytest.fixture(scope="module")
def world() -> list[tuple[Truth, torch.Tensor]]:
    truths = [draw_song(771, index)[0] for index in range(SONGS)]
    return [(truth, torch.from_numpy(render_song(truth))) for truth in truths]


def mean_scores(fitted: Oracles, pairs: list[tuple[Truth, torch.Tensor]]) -> dict[str, float]:
    scores = [fitted.score(samples, truth) for truth, samples in pairs]
    return {factor: float(np.mean([score[factor] for score in scores])) for factor in FACTORS}


@pytest.mark.slow
def test_oracles_are_accurate_on_unseen_songs(fitted: Oracles, world) -> None:
    accuracy = mean_scores(fitted, world)
    assert min(accuracy.values()) >= 0.98, accuracy


@pytest.mark.slow
def test_oracles_are_accurate_on_reconstructions(fitted: Oracles, world) -> None:
    autoencoder = Pipeline.from_pretrained("micro").autoencoder
    again = [(truth, autoencoder.decode(autoencoder.encode(samples[None]).mean)[0]) for truth, samples in world]
    original, reconstructed = mean_scores(fitted, world), mean_scores(fitted, again)
    assert all(reconstructed[factor] >= 0.95 * original[factor] for factor in FACTORS), reconstructed


@pytest.mark.slow
def test_prompts_of_other_songs_score_at_chance(fitted: Oracles, world) -> None:
    shuffled = [(truth, samples) for (truth, _), (_, samples) in zip(world, world[1:] + world[:1], strict=True)]
    scores = mean_scores(fitted, shuffled)
    for factor in FACTORS:
        spread = (CHANCE[factor] * (1 - CHANCE[factor]) / SONGS) ** 0.5
        assert scores[factor] == pytest.approx(CHANCE[factor], abs=4.5 * spread), factor


def test_silence_and_noise_can_be_scored(fitted: Oracles) -> None:
    truth = draw_song(0, 0)[0]
    for samples in (torch.zeros(2, 96_000), torch.randn(2, 96_000, generator=torch.Generator().manual_seed(0))):
        assert set(fitted.score(samples, truth)) == set(FACTORS)


def test_logistic_regression_separates_linearly_separable_classes() -> None:
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    labels = (rows[:, 0] > rows[:, 1]).long()
    classifier = LogisticRegression.fit(rows, labels, 2, penalty=1e-5)
    assert (classifier(rows) == labels).float().mean() > 0.98


def test_saved_oracles_predict_the_same(fitted: Oracles, tmp_path) -> None:
    fitted.save(tmp_path / "oracles.safetensors")
    again = Oracles.load(tmp_path / "oracles.safetensors")
    truth = draw_song(0, 1)[0]
    samples = torch.from_numpy(render_song(truth))
    assert fitted.predict(samples, truth) == again.predict(samples, truth)
