"""A block for adapters, and its input."""

from __future__ import annotations

import pytest
import torch
from adapters.blocks import Block, generator
from torch import Tensor


@pytest.fixture
def block() -> Block:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Block()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 64, generator=generator())
