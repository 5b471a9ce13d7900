"""Codes to what the DiT hears, and back: the same as the network's own round trip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import NETWORK

from acestep.conditioning.prompt import instruction
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.hints import audio_codes, hints, planned_layout
from acestep.types import Song


@pytest.fixture(scope="module")
def network() -> AceStep:
    network = AceStep(AceStepConfig.from_dict(NETWORK)).eval()
    network.init_weights(torch.Generator().manual_seed(0))
    return network


def test_hints_of_a_songs_codes_are_its_round_trip(network: AceStep) -> None:
    generator = torch.Generator().manual_seed(1)
    silence = torch.randn(1, 20, 64, generator=generator)
    latents = [torch.randn(frames, 64, generator=generator) for frames in (25, 13)]
    codes = audio_codes(network, latents, silence)
    assert [len(song) for song in codes] == [5, 3]
    for song, made in zip(latents, hints(network, codes), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(made, network.round_trip(song[None], silence)[0])


@pytest.mark.parametrize("codes", [[], [64_000], [-1]])
def test_codes_that_the_tokenizer_has_not_are_refused(network: AceStep, codes: list[int]) -> None:
    with pytest.raises(ValueError, match="codes: need at least one, each from 0 to 63999"):
        hints(network, [codes])


@pytest.mark.parametrize("frames", [23, 25, 31])
def test_a_planned_song_is_heard_as_a_cover_of_its_codes(tiny: Path, frames: int) -> None:
    pipeline = Pipeline.from_pretrained(tiny)
    hint = hints(pipeline.network, [[1, 2, 3, 4, 5]])[0]
    silence = pipeline.conditioner.silence
    layout = planned_layout(hint, silence, frames)
    inputs = pipeline.conditioner.encode([Song(caption="x", seconds=frames / 25)], [frames], [layout])
    heard = pipeline.network.condition(inputs, silence)
    # As upstream lays it out: a cover whose hints are given, silence behind them.
    cover = replace(inputs, is_cover=torch.ones(1, dtype=torch.bool), hints=layout.source[None])
    assert torch.equal(heard.context, pipeline.network.condition(cover, silence).context)
    kept = min(25, frames)
    assert torch.equal(layout.source[:kept], hint[:kept])
    assert torch.equal(layout.source[kept:], silence[0, : frames - kept])
    assert layout.instruction == instruction("cover")
