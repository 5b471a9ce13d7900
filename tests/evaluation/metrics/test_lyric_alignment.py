"""The lyric alignment score on attention with known values, and the attention of a tiny network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acestep.audio.audio import Audio
from acestep.conditioning.prompt import render_prompt
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.metrics.lyric_alignment import (
    LyricAlignment,
    alignment_score,
    record_cross_attention,
    sung_tokens,
    warping_path,
)
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song

BLOCKS = torch.eye(4).repeat_interleave(4, dim=1)
ATTRACTOR = torch.zeros(8, 8).index_fill(0, torch.tensor([0]), 1.0)


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        (torch.eye(8), 0.5333),
        (BLOCKS, 0.8421),
        (torch.eye(8).flip(0), 0.0667),
        (torch.full((8, 8), 0.3), 0.0),
        (ATTRACTOR, 0.0083),
    ],
    ids=["diagonal", "blocks of 4", "anti-diagonal", "uniform", "one attractor"],
)
def test_upstreams_values(attention: torch.Tensor, expected: float):
    assert alignment_score(attention) == pytest.approx(expected, abs=1e-9)
    assert alignment_score(3 * attention + 1) == pytest.approx(expected, abs=1e-4)


def test_moving_backwards_lowers_the_score():
    forward = torch.eye(6).repeat_interleave(20, dim=1)
    backward = forward[[0, 3, 1, 4, 2, 5]]
    assert alignment_score(backward) < 0.5 * alignment_score(forward)


def test_rows_of_tags_are_left_out():
    tagged = torch.cat([torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) * 5, BLOCKS])
    sung = torch.tensor([False, False, True, True, True, True])
    assert alignment_score(tagged, sung) == pytest.approx(0.8421)
    assert alignment_score(tagged, torch.zeros(6, dtype=torch.bool)) == 0.0


def test_the_path_is_complete():
    path = warping_path(torch.rand(5, 9, generator=torch.Generator().manual_seed(1)))
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [4, 8]
    assert set(map(tuple, path.diff(dim=0).tolist())) <= {(0, 1), (1, 0), (1, 1)}


SUNG = Song(caption="a song", lyrics="[verse]\nla li\n[chorus - soft]\nlo", language="en")


def test_tokens_of_sung_words(pipeline: Pipeline):
    tokenizer = pipeline.conditioner.text_encoder.tokenizer
    sung = sung_tokens(SUNG, tokenizer)
    offsets = tokenizer.encode(render_prompt(SUNG).lyrics).offsets
    assert len(sung) == len(offsets)
    text = "".join(render_prompt(SUNG).lyrics[a:b] for (a, b), one in zip(offsets, sung.tolist(), strict=True) if one)
    assert text.replace(" ", "") == "lalilo"
    assert not sung_tokens(replace(SUNG, lyrics=""), tokenizer).any()


def test_features_depend_on_recording_and_lyrics(pipeline: Pipeline, tiny: Path):
    metric = LyricAlignment(weights=str(tiny), heads={0: [1], 1: [0, 1]}).load()
    prompt = EvaluationPrompt(id="a", song=SUNG)
    assert metric.applies(prompt)
    assert not metric.applies(EvaluationPrompt(id="b", song=replace(SUNG, lyrics="[instrumental]")))
    extractor = metric.extractor_for(prompt)
    assert extractor.fingerprint == metric.extractor_for(prompt).fingerprint
    assert (
        extractor.fingerprint
        != metric.extractor_for(EvaluationPrompt(id="c", song=replace(SUNG, lyrics="la"))).fingerprint
    )
    noise = 0.1 * torch.randn(2, 48_000, generator=torch.Generator().manual_seed(0))
    first, second = extractor.extract(Audio(noise, 48_000)), extractor.extract(Audio(noise, 48_000))
    assert torch.equal(first["attention"], second["attention"])
    assert first["attention"].shape[0] == len(first["sung"])
    # The rest of each patch's attention goes to timbre and text.
    assert 0 < first["attention"].sum(0).max() < 1
    assert 0 <= metric.score(first, prompt)["score"] <= 1
    with pytest.raises(MissingWeightsError, match=r"alignment\.heads"):
        LyricAlignment().load()
    with pytest.raises(ValueError, match="2 layers of 2 heads"):
        LyricAlignment(weights=str(tiny)).load()


def test_recorded_attention_is_the_networks(pipeline: Pipeline):
    attention = pipeline.network.decoder.layers[1].cross_attn
    x, source = torch.randn(1, 5, 16), torch.randn(1, 7, 16)
    with record_cross_attention(pipeline.network.decoder, {1: (0, 1)}) as weights, torch.no_grad():
        out = attention(x, source=source)
    values = attention.v_proj(source).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    mixed = weights[0] @ values[0].repeat_interleave(2, 0)
    torch.testing.assert_close(attention.o_proj(mixed.transpose(0, 1).flatten(1)), out[0])
