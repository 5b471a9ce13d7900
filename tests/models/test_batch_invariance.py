"""With ``padding=masked`` a song's result is independent of its batch; with ``upstream`` it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TINY, batch, network, normal, pad, random_inputs
from torch import Tensor

from acestep.models.acestep import AceStep
from acestep.models.dit import Padding
from acestep.types import ConditionInputs

SILENCE = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(1))
MASKED = network(replace(TINY, padding=Padding.masked))
UPSTREAM = network(replace(TINY, padding=Padding.upstream))
TIMES = torch.tensor([0.9, 0.5, 0.1])

sizes = st.tuples(st.integers(1, 400), st.integers(1, 20), st.integers(1, 30))


@settings(max_examples=25, deadline=None)
@given(songs=st.lists(sizes, min_size=2, max_size=3), seed=st.integers(0, 2**16))
def test_masked_results_do_not_depend_on_the_batch(songs: list[tuple[int, int, int]], seed: int) -> None:
    for together, alone in zip(*_both_ways(MASKED, songs, seed), strict=True):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("songs", [[(40, 5, 7), (30, 5, 7)], [(40, 9, 7), (40, 5, 7)], [(40, 5, 9), (40, 5, 7)]])
def test_upstream_results_depend_on_every_kind_of_padding(songs: list[tuple[int, int, int]]) -> None:
    together, alone = _both_ways(UPSTREAM, songs, seed=0)
    assert (together[1] - alone[1]).abs().max() > 1e-2


def test_without_padding_both_modes_are_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = batch([random_inputs(generator, 33, 5, 7), random_inputs(generator, 33, 5, 7)], generator)
    x_t = normal(generator, 2, 33, 4)
    assert torch.equal(_velocity(MASKED, inputs, x_t), _velocity(UPSTREAM, inputs, x_t))


def test_fully_masked_songs_stay_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = batch([random_inputs(generator, 40, 5, 7), random_inputs(generator, 40, 5, 7)], generator)
    nothing = torch.tensor([[True], [False]])
    inputs = replace(
        inputs,
        text_mask=inputs.text_mask & nothing,
        lyrics_mask=inputs.lyrics_mask & nothing,
        frame_mask=inputs.frame_mask & nothing,
        references=inputs.references[:1],
        reference_index=torch.zeros(1, dtype=torch.long),
    )
    assert _velocity(MASKED, inputs, normal(generator, 2, 40, 4)).isfinite().all()


def _both_ways(model: AceStep, songs: list[tuple[int, int, int]], seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Each song's velocity computed in one batch, and computed alone."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [random_inputs(generator, *song) for song in songs]
    noisy = [normal(generator, 1, frames, 4) for frames, _, _ in songs]
    longest = max(frames for frames, _, _ in songs)
    padded = torch.cat([pad(x_t, longest, generator) for x_t in noisy])
    together = _velocity(model, batch(inputs, generator), padded)
    alone = [_velocity(model, one, x_t, i)[0] for i, (one, x_t) in enumerate(zip(inputs, noisy, strict=True))]
    return [row[: len(one)] for row, one in zip(together, alone, strict=True)], alone


@torch.no_grad()
def _velocity(model: AceStep, inputs: ConditionInputs, x_t: Tensor, first: int = 0) -> Tensor:
    return model.velocity(x_t, TIMES[first : first + len(x_t)], model.condition(inputs, SILENCE))
