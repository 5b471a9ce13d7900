"""Windows at fixed places, one mean, and a tripwire for embedders that say the same of everything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import CollapsedError, MissingWeightsError, check_collapse, cut_windows, pooled
from acestep.evaluation.embedders.clap import LaionClap, TransformersClap
from acestep.evaluation.embedders.mel import MelSpec
from acestep.evaluation.metrics.base import EmbedderEar
from acestep.evaluation.metrics.core import ClapScorer
from acestep.evaluation.prompts import Prompt
from acestep.types import Song


class Fixed:
    """An embedder of two directions, to see what is done with its vectors."""

    unrelated = ()
    name = "fixed"
    fingerprint = "fixed"

    def __init__(self, windows: list[list[float]], texts: dict[str, list[float]]) -> None:
        self._windows, self._texts = torch.tensor(windows), texts

    def audio(self, audio: Audio) -> Tensor:
        return self._windows

    def text(self, songs: Sequence[Song]) -> Tensor:
        return torch.tensor([self._texts[song.caption] for song in songs])


def prompt(caption: str) -> Prompt:
    return Prompt(id=caption, song=Song(caption=caption))


def test_cosine_of_the_mean_is_not_the_mean_of_cosines():
    scorer = ClapScorer(EmbedderEar(Fixed([[1.0, 0.0], [0.0, 1.0]], {"east": [1.0, 0.0]})))
    score = scorer.score(scorer.ear.hear(Audio(torch.zeros(1, 8), 8)), prompt("east"))
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


def test_the_tripwire_fires_on_constant_vectors_and_not_on_varied_ones():
    varied = F.normalize(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    check_collapse(varied, "varied", 0.8)
    check_collapse(varied[:1].expand(8, -1), "too few to say", 0.8)
    with pytest.raises(CollapsedError, match=r"mean cosine between 20 distinct inputs is 1\.000"):
        check_collapse(varied[:1].expand(20, -1), "constant", 0.8)


def test_a_scorer_refuses_an_embedder_that_reads_all_words_alike():
    embedder = Fixed([[1.0, 0.0]], {f"caption {i}": [1.0, 0.01 * i] for i in range(16)})
    embedder.unrelated = tuple(Song(caption=f"caption {i}") for i in range(16))
    with pytest.raises(CollapsedError, match="fixed on captions"):
        ClapScorer(EmbedderEar(embedder)).check([])


def test_what_is_missing_is_named_with_where_it_comes_from(tmp_path: Path):
    with pytest.raises(MissingWeightsError, match=r"music_audioset_epoch_15_esc_90.14.pt.*huggingface.co"):
        LaionClap(weights=str(tmp_path / "none.pt")).load()
    with pytest.raises(MissingWeightsError, match="hf download someone/nothing"):
        TransformersClap(weights="someone/nothing").load()


def test_mel_needs_no_weights_hears_balance_and_knows_no_words():
    embedder = MelSpec(bands=16).load()
    noise = torch.randn(2, 48_000 * 3, generator=torch.Generator().manual_seed(0)) * 0.1
    windows = embedder.audio(Audio(noise, 48_000))
    assert windows.shape == (3, 16)
    assert torch.equal(windows, embedder.audio(Audio(noise, 48_000)))
    dull = torch.nn.functional.avg_pool1d(noise[None], 33, 1, 16)[0]
    assert (embedder.audio(Audio(dull, 48_000)) - windows)[:, -1].max() < -0.5
    with pytest.raises(ValueError, match="knows no words"):
        embedder.text([Song(caption="a")])
