"""Codes to latents and back, equal to the network's own tokenizer round trip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import NETWORK

from acestep.conditioning.prompt import task_instruction
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.codes import codes_to_latents, latents_to_codes, planned_context
from acestep.songs import Song


@pytest.fixture(scope="module")
def network() -> AceStep:
    network = AceStep(AceStepConfig.from_dict(NETWORK)).eval()
    network.init_weights(torch.Generator().manual_seed(0))
    return network


def test_latents_of_codes_equal_the_tokenizer_round_trip(network: AceStep) -> None:
    generator = torch.Generator().manual_seed(1)
    silence = torch.randn(1, 20, 64, generator=generator)
    latents = [torch.randn(frames, 64, generator=generator) for frames in (25, 13)]
    codes = latents_to_codes(network, latents, silence)
    assert [len(song) for song in codes] == [5, 3]
    for song, decoded in zip(latents, codes_to_latents(network, codes), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(decoded, network.round_trip(song[None], silence)[0])


@pytest.mark.parametrize("codes", [[], [64_000], [-1]])
def test_codes_outside_the_codebook_are_refused(network: AceStep, codes: list[int]) -> None:
    with pytest.raises(ValueError, match="codes: need at least one, each from 0 to 63999"):
        codes_to_latents(network, [codes])


@pytest.mark.parametrize("frames", [23, 25, 31])
def test_a_planned_song_is_conditioned_as_a_cover_of_its_codes(tiny: Path, frames: int) -> None:
    pipeline = Pipeline.from_pretrained(tiny)
    hint = codes_to_latents(pipeline.network, [[1, 2, 3, 4, 5]])[0]
    silence = pipeline.conditioner.silence
    layout = planned_context(hint, silence, frames)
    inputs = pipeline.conditioner.encode([Song(caption="x", seconds=frames / 25)], [frames], [layout])
    conditions = pipeline.network.condition(inputs, silence)
    # Upstream's layout: a cover with given hints, then silence.
    cover = replace(inputs, is_cover=torch.ones(1, dtype=torch.bool), hints=layout.source[None])
    assert torch.equal(conditions.context, pipeline.network.condition(cover, silence).context)
    kept = min(25, frames)
    assert torch.equal(layout.source[:kept], hint[:kept])
    assert torch.equal(layout.source[kept:], silence[0, : frames - kept])
    assert layout.instruction == task_instruction("cover")
