"""Metrics under corruption: the corruptions, a small run of the benchmark, and its published result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.metrics.tempo import tempo
from benchmarks import corruption, evaluation
from benchmarks.corruption import SIGNAL_CORRUPTIONS

RATE = 24_000
RESULTS = evaluation.HERE / "results" / "evaluation_corruption.json"


def song() -> Audio:
    """Noise bursts twice a second over a chord, in stereo."""
    time = torch.arange(RATE * 4) / RATE
    chord = sum(torch.sin(2 * torch.pi * hz * time) for hz in (220.0, 277.2, 329.6, 3000.0))
    burst = torch.randn(len(time), generator=torch.Generator().manual_seed(0)) * torch.exp(-20 * (time % 0.5))
    return Audio(0.1 * torch.stack([chord + 2 * burst, chord - burst]), RATE)


@pytest.mark.parametrize("name", SIGNAL_CORRUPTIONS)
def test_nothing_at_0_and_more_at_every_level(name: str):
    original = song()

    def corrupted(level: float) -> torch.Tensor:
        return SIGNAL_CORRUPTIONS[name](original, level, torch.Generator().manual_seed(3)).samples

    assert torch.equal(corrupted(0.0), original.samples)
    assert torch.equal(corrupted(0.5), corrupted(0.5))
    assert corrupted(1.0).shape == original.samples.shape
    similarity = [
        float(torch.nn.functional.cosine_similarity(corrupted(level).flatten(), original.samples.flatten(), dim=0))
        for level in (0.0, 0.3, 0.6, 1.0)
    ]
    if name != "slowing":
        assert similarity == sorted(similarity, reverse=True)
    assert similarity[-1] < 0.9
    assert corrupted(1.0).abs().max() <= 1.0


def test_slowing_slows():
    slow = SIGNAL_CORRUPTIONS["slowing"](song(), 0.5, torch.Generator())
    assert tempo(song()) == pytest.approx(120.0, rel=0.01)
    assert tempo(slow) == pytest.approx(96.0, rel=0.02)


@pytest.mark.slow
@pytest.mark.long
def test_a_small_run_is_written_with_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corruption, "LEVELS", (0.0, 0.5, 1.0))
    evaluation.main(["corruption", "--songs", "4", "--folder", str(tmp_path), "--docs", str(tmp_path)])
    result = json.loads((tmp_path / "evaluation_corruption.json").read_text())
    assert set(result["curves"]) == set(corruption.DESCRIPTIONS)
    assert (tmp_path / "corruption.png").is_file()
    assert (tmp_path / "corruption.svg").is_file()
    wrong = result["curves"]["wrong prompt"]
    assert wrong["adherence.mean"][0] > wrong["adherence.mean"][1] > wrong["adherence.mean"][2]
    assert wrong["clap.of_mean"][0] > wrong["clap.of_mean"][2]
    assert result["curves"]["noise"]["fad.fad"][0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.long
@pytest.mark.skipif(not RESULTS.is_file(), reason="no published result: python -m benchmarks.evaluation corruption")
def test_published_correlations_of_adherence_metrics_are_high():
    result = json.loads(RESULTS.read_text())
    assert set(result["rank_correlation"]) == set(corruption.DESCRIPTIONS)
    for name, columns in result["rank_correlation"].items():
        for column in columns.keys() & corruption.TARGETS.keys():
            assert columns[column] >= 0.9, f"{column} under {name}"
            lines = result["curves"][name]
            assert columns[column] == pytest.approx(
                corruption.spearman(lines[column], lines[corruption.TARGETS[column][0]])
            )
