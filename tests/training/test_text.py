"""Training conditions on the same inputs as generation, unless upstream's trainer is selected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acestep.conditioning.encode import Conditioner
from acestep.conditioning.masks import task_context
from acestep.conditioning.prompt import render_prompt
from acestep.conditioning.upstream import TrainerConditioner
from acestep.data import ExampleConfig, LatentDataset
from acestep.models.language import TextEncoder
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Request, Song


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny)


def test_training_and_generation_have_equal_inputs(store: Path, pipeline: Pipeline) -> None:
    example = LatentDataset(store, config=ExampleConfig(crop_frames=10))[2]
    request = pipeline.resolve(Request(**{name: getattr(example.song, name) for name in Song.__dataclass_fields__}))
    assert request.seconds == example.song.seconds
    trained = pipeline.conditioner.encode([example.song], [10])
    made = pipeline.conditioner.encode(
        [request], [10], [task_context("text2music", None, pipeline.conditioner.silence, 10)]
    )
    for name in ("text", "lyrics", "source", "chunk_mask", "references"):
        assert torch.equal(getattr(trained, name), getattr(made, name)), name
    assert render_prompt(request) == render_prompt(example.song)


SONGS = [Song(caption="a", lyrics="[verse]\nla", language="de", bpm=90, seconds=2.9), Song(caption="b", seconds=1.0)]


def test_upstream_trainer_conditioning_differs(tiny: Path) -> None:
    text_encoder = TextEncoder(tiny / "text_encoder", max_lyric_tokens=2048)
    ours = Conditioner(text_encoder, torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0)), 10)
    theirs = TrainerConditioner.like(ours)
    long = replace(SONGS[0], lyrics="la " * 400)
    new, old = (c.encode([SONGS[0], SONGS[1], long], [4, 8, 8]) for c in (ours, theirs))
    encoder = text_encoder.tokenizer
    lyrics = encoder.encode("[verse]\nla").ids
    assert old.lyrics.shape[1] == 512
    assert old.lyrics_mask.sum(1).tolist() == [len(lyrics), len(encoder.encode("[Instrumental]").ids), 512]
    assert torch.equal(old.lyrics[0, : len(lyrics)], text_encoder.network.embed_tokens(torch.tensor(lyrics)))
    assert new.lyrics_mask.sum(1)[2] > 1200
    assert old.text.shape[1] == 256
    assert old.text[~old.text_mask].ne(0).any(), "pad tokens go through the network"
    assert torch.equal(old.references, torch.zeros(3, 1, 64))
    assert new.references.shape[1] == 10
    assert torch.equal(old.source[1], new.source[1])
    assert old.source[0, 4:].eq(0).all()
    assert old.chunk_mask[0].eq(0).sum() == 4 * 64
    assert new.chunk_mask.eq(1).all()
    assert torch.equal(old.frame_mask, new.frame_mask)
