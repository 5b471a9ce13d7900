"""Analytic velocity fields and their conditions: flows whose results are known without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from acestep.types import Conditions


@dataclass
class Toy:
    """A field that depends on all of its inputs, and counts the songs that it evaluates."""

    rows: int = 0
    times: list[float] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        self.rows += len(x_t)
        self.times.append(t[0].item())
        pull = conditions.states.mean(dim=1)[:, None, : x_t.shape[-1]]
        return torch.sin(2 * x_t) + pull * (1 + t[:, None, None]) + conditions.context[..., : x_t.shape[-1]]


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="session")
def make_toy() -> type[Toy]:
    return Toy


@pytest.fixture(scope="session")
def conditions_for() -> Callable[..., Conditions]:
    """Random conditions for songs of the given lengths, song by song from the given seeds; ``null`` empties them."""

    def make(
        frames: Sequence[int], seeds: Sequence[int] | None = None, channels: int = 4, null: bool = False
    ) -> Conditions:
        states, contexts = [], []
        for length, seed in zip(frames, seeds or range(len(frames)), strict=True):
            generator = torch.Generator().manual_seed(1000 + seed)
            states.append(torch.zeros(3, channels) if null else torch.randn(3, channels, generator=generator))
            generator.manual_seed(2000 + seed)
            contexts.append(torch.randn(length, 2 * channels, generator=generator))
        padded = torch.nn.utils.rnn.pad_sequence(contexts, batch_first=True, padding_value=9.0)
        return Conditions(
            states=torch.stack(states),
            mask=torch.ones(len(frames), 3, dtype=torch.bool),
            context=padded,
            frame_mask=torch.arange(max(frames)) < torch.tensor(frames)[:, None],
        )

    return make
