"""A small module to insert adapters into."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acestep.adapters import Adapter


class Block(nn.Module):
    """Large enough for whole blocks of nf4."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(64, 256), nn.Linear(256, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.o_proj(torch.tanh(self.q_proj(x)))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def moved(module: nn.Module, adapter: Adapter) -> nn.Module:
    """``module`` with an adapter whose numbers are none of their start values."""
    adapter(module, generator())
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator())
    return module
