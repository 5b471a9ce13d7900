"""Coverage, diversity and memorisation on sets whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from acestep.audio.audio import Audio, read_audio
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.embedders.mel import MelEmbedder
from acestep.evaluation.metrics.coverage import Diversity, Memorisation, density_coverage, expected_coverage
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.songs import Song


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_distributions():
    values = [density_coverage(normal(200, 8, seed), normal(150, 8, 100 + seed)) for seed in range(10)]
    assert sum(d for d, _ in values) / 10 == pytest.approx(1.0, abs=0.1)
    assert sum(c for _, c in values) / 10 == pytest.approx(expected_coverage(200, 150), abs=0.02)


def test_on_a_line_by_hand():
    """k = 1: the balls are [-1, 1], [0, 2], [1, 3] around 0, 1, 2 and [2, 10.5]... of radius 4.5 around 6.5."""
    reference = torch.tensor([[0.0], [1.0], [2.0], [6.5]])
    assert density_coverage(reference, torch.tensor([[0.5], [50.0]]), k=1) == (1.0, 0.5)


def test_a_single_mode_is_dense_and_covers_little():
    reference = torch.cat([normal(100, 4), normal(100, 4, 1) + 20])
    density, coverage = density_coverage(reference, normal(200, 4, 2))
    assert 0.4 < coverage < 0.52
    assert density == pytest.approx(1.0, abs=0.2)
    far, missed = density_coverage(reference, normal(200, 4, 2) - 50)
    assert (far, missed) == (0.0, 0.0)
    with pytest.raises(ValueError, match="more than k=5"):
        density_coverage(reference[:5], reference)


def test_takes_that_are_all_the_same_have_no_diversity():
    metric = Diversity(embedder=MelEmbedder())
    east, north = ({"windows": torch.tensor([row])} for row in ([1.0, 0.0], [0.0, 1.0]))
    assert metric.compare_takes(east, [east, east])["distance"] == pytest.approx(0.0, abs=1e-6)
    assert metric.compare_takes(east, [east, north])["distance"] == pytest.approx(0.5)


def test_a_copied_song_stands_out(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    for index in range(6):
        colour = F.conv1d(torch.randn(1, 1, 96_000, generator=generator), torch.randn(1, 1, 64, generator=generator))
        Audio(0.05 * colour[0], 48_000).save(tmp_path / f"{index}.flac")
    metric = Memorisation(embedder=MelEmbedder(), songs=str(tmp_path)).load()
    features = [metric.extractor.extract(read_audio(path)) for path in metric.recordings([])]
    metric.fit(features)
    prompt = EvaluationPrompt(id="a", song=Song())
    copied = metric.score(features[3], prompt)
    assert copied["nearest"] == pytest.approx(1.0, abs=1e-5)
    assert copied["percentile"] == 1.0
    assert metric.score({"windows": -features[3]["windows"]}, prompt)["percentile"] == 0.0
    with pytest.raises(MissingWeightsError, match="trained on"):
        Memorisation(embedder=MelEmbedder(), songs=str(tmp_path / "none")).load()
