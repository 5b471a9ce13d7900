"""KL between labels: its value, its direction, and a real tagger of random weights around it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.metrics.kld import TagDivergence, kl_divergence


def test_value_and_direction():
    even, uneven = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    assert kl_divergence(even, uneven, eps=0.0) == pytest.approx(0.510826, abs=1e-6)
    assert kl_divergence(uneven, even, eps=0.0) == pytest.approx(0.368064, abs=1e-6)
    assert kl_divergence(even, uneven) == pytest.approx(0.510820, abs=1e-6)


def test_a_label_of_probability_zero_has_a_finite_cost():
    sure, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert kl_divergence(sure, other) == pytest.approx(13.8155, abs=1e-3)
    assert kl_divergence(sure, sure) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.slow
def test_a_taggers_divergence_is_zero_only_for_the_same_song(tmp_path: Path):
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=9, max_length=128
    )
    model = ASTForAudioClassification(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    ASTFeatureExtractor(max_length=128).save_pretrained(tmp_path)
    metric = TagDivergence(weights=str(tmp_path)).load()
    noise = 0.2 * torch.randn(2, 44_100 * 12, generator=torch.Generator().manual_seed(0))
    tone = 0.2 * torch.sin(torch.arange(44_100 * 12) * 0.03).expand(2, -1)
    song, other = (metric.extract(Audio(samples, 44_100)) for samples in (noise, tone))
    assert song["logits"].shape == (9,)
    assert metric.compare(song, song)["kl"] == pytest.approx(0.0, abs=1e-4)
    assert metric.compare(song, other)["kl"] > 0.001
    assert metric.compare(song, other)["kl"] == pytest.approx(metric.compare(other, song)["kl_reverse"])


def test_missing_weights_say_where_they_come_from(tmp_path: Path):
    with pytest.raises(MissingWeightsError, match="hf download"):
        TagDivergence(weights=str(tmp_path / "none")).load()
