"""A metric of one's own: one class outside the package, with the defaults of the base class."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.cache import FeatureCache
from acestep.evaluation.embedders.mel import MelEmbedder
from acestep.evaluation.metrics import EmbedderMetric, SetMetric, SongMetric
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.evaluation.suite import load_metrics, metric_info
from acestep.songs import Song

PROMPT = EvaluationPrompt(id="a", song=Song(seconds=2.0))
AUDIO = Audio(torch.tensor([[0.25, -0.5]]), 2)


def test_the_example_in_the_docstring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    example = dedent(SongMetric.__doc__.split("::\n", 1)[1])
    (tmp_path / "my_module.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    from my_module import Peak

    metrics, left_out = load_metrics({"mine": Peak(), "off": None}, available_only=False)
    cache = FeatureCache(tmp_path / "cache")
    path = AUDIO.save(tmp_path / "song.wav")
    assert metrics["mine"].score(cache.features(metrics["mine"].extractor, path), PROMPT) == {"peak": 0.5}
    assert not metrics["mine"].uses_prompt
    info = metric_info(metrics, left_out)
    assert info["goals"] == {"mine": "neither"}
    assert info["extractors"]["mine"].startswith("Peak ")
    del sys.modules["my_module"]


@dataclass(frozen=True, kw_only=True)
class Duration(SongMetric):
    """A metric that depends on the prompt and has a field."""

    scale: float = 1.0

    def extract(self, audio: Audio) -> dict[str, torch.Tensor]:
        return {"seconds": torch.tensor([self.scale * audio.seconds])}

    def score(self, features: dict[str, torch.Tensor], prompt: EvaluationPrompt) -> dict[str, float]:
        return {"error": abs(float(features["seconds"]) - prompt.song.seconds)}


def test_the_fingerprint_covers_class_and_fields():
    assert Duration().uses_prompt
    assert Duration().fingerprint == Duration().load().fingerprint
    assert Duration().fingerprint != Duration(scale=2.0).fingerprint
    assert Duration(scale=2.0).score(Duration(scale=2.0).extract(AUDIO), PROMPT) == {"error": 0.0}


@dataclass(frozen=True, kw_only=True)
class MeanDistance(EmbedderMetric, SetMetric):
    """A set metric on an embedder."""

    def distance(
        self, features: Sequence[dict], reference: Sequence[dict], same_songs: bool = False
    ) -> dict[str, float]:
        means = [torch.cat([song["windows"] for song in songs]).mean(0) for songs in (features, reference)]
        return {"distance": float((means[0] - means[1]).norm())}


def test_a_set_metric_needs_a_reference_and_shares_its_embedder():
    first, second = (MeanDistance(embedder=MelEmbedder(bands=8)).load() for _ in range(2))
    assert first.needs_reference
    assert first.extractor is second.extractor
    songs = [first.extractor.extract(Audio(torch.rand(2, 48_000), 48_000)) for _ in range(2)]
    assert first.distance(songs, songs) == {"distance": 0.0}
    assert first.half_distances(songs, songs) is None


def test_state_is_not_shared_between_loaded_copies():
    metric = Duration()
    metric.state["seconds"] = 1.0
    assert metric.load().state == {}
