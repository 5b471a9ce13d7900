"""Windows at fixed positions, one mean, and detection of collapsed embedders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import (
    CollapsedError,
    Embedder,
    MissingWeightsError,
    check_collapse,
    cut_windows,
    pooled,
)
from acestep.evaluation.embedders.clap import LaionClap, TransformersClap
from acestep.evaluation.embedders.mel import MelEmbedder
from acestep.evaluation.metrics import ClapAdherence
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.songs import Song


@dataclass(frozen=True, kw_only=True)
class Fixed(Embedder):
    """An embedder with given vectors."""

    windows: tuple[tuple[float, ...], ...]
    texts: Mapping[str, Sequence[float]] = field(hash=False)
    name = "fixed"
    fingerprint = "fixed"
    unrelated = tuple(Song(caption=f"caption {i}") for i in range(16))

    def embed_audio(self, audio: Audio) -> Tensor:
        return torch.tensor(self.windows)

    def embed_text(self, songs: Sequence[Song]) -> Tensor:
        return torch.tensor([self.texts[song.caption] for song in songs])


def prompt(caption: str) -> EvaluationPrompt:
    return EvaluationPrompt(id=caption, song=Song(caption=caption))


def test_cosine_of_the_mean_is_not_the_mean_of_cosines():
    embedder = Fixed(windows=((1.0, 0.0), (0.0, 1.0)), texts={"east": [1.0, 0.0]})
    score = ClapAdherence(embedder=embedder).score(embedder.extract(Audio(torch.zeros(1, 8), 8)), prompt("east"))
    assert score["of_mean"] == pytest.approx(1 / math.sqrt(2), abs=1e-5)
    assert score["mean_of_windows"] == pytest.approx(0.5)
    assert score["lowest_window"] == 0.0
    assert score["first_window"] == 1.0
    assert float(pooled(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))[0]) == pytest.approx(1 / math.sqrt(2))


def test_windows_are_whole_and_short_songs_repeat():
    ramp = torch.arange(25.0)
    assert cut_windows(ramp, 10, 10).tolist() == [list(range(10)), list(range(10, 20))]
    assert len(cut_windows(ramp, 10, 5)) == 4
    assert cut_windows(torch.ones(4), 10, 10).tolist() == [[1.0] * 8 + [0.0] * 2]
    with pytest.raises(ValueError, match="need one channel"):
        cut_windows(torch.zeros(0), 10, 10)


def test_collapse_is_detected_on_constant_vectors_and_not_on_varied_ones():
    varied = F.normalize(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    check_collapse(varied, "varied", 0.8)
    check_collapse(varied[:1].expand(8, -1), "too few to say", 0.8)
    with pytest.raises(CollapsedError, match=r"mean cosine between 20 distinct inputs is 1\.000"):
        check_collapse(varied[:1].expand(20, -1), "constant", 0.8)


def test_a_metric_refuses_an_embedder_with_collapsed_texts():
    embedder = Fixed(windows=((1.0, 0.0),), texts={f"caption {i}": [1.0, 0.01 * i] for i in range(16)})
    with pytest.raises(CollapsedError, match="fixed on captions"):
        ClapAdherence(embedder=embedder).fit([])


def test_what_is_missing_is_named_with_where_it_comes_from(tmp_path: Path):
    with pytest.raises(MissingWeightsError, match=r"music_audioset_epoch_15_esc_90.14.pt.*huggingface.co"):
        _ = LaionClap(weights=str(tmp_path / "none.pt")).fingerprint
    with pytest.raises(MissingWeightsError, match="hf download someone/nothing"):
        _ = TransformersClap(weights="someone/nothing").fingerprint


def test_mel_needs_no_weights_reflects_balance_and_has_no_text_encoder():
    embedder = MelEmbedder(bands=16)
    noise = torch.randn(2, 48_000 * 3, generator=torch.Generator().manual_seed(0)) * 0.1
    windows = embedder.embed_audio(Audio(noise, 48_000))
    assert windows.shape == (3, 16)
    assert torch.equal(windows, embedder.embed_audio(Audio(noise, 48_000)))
    dull = torch.nn.functional.avg_pool1d(noise[None], 33, 1, 16)[0]
    assert (embedder.embed_audio(Audio(dull, 48_000)) - windows)[:, -1].max() < -0.5
    with pytest.raises(ValueError, match="no text encoder"):
        embedder.embed_text([Song(caption="a")])
