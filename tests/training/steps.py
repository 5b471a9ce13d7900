"""One step of a tiny network, in this process or in one of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tiny import NETWORK
from torch._dynamo.utils import counters

from acestep.models.acestep import AceStep, AceStepConfig
from acestep.training.activation_checkpointing import Recompute
from acestep.training.trainer import TrainerConfig
from acestep.types import Conditions


def conditions(songs: int, frames: int) -> Conditions:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(songs, 5, NETWORK["encoder_hidden_size"], generator=generator)
    context = torch.randn(songs, frames, 128, generator=generator)
    return Conditions(states, torch.ones(songs, 5).bool(), context, torch.ones(songs, frames).bool())


def step(what: Recompute, compiled: bool = False) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes saved for the backward pass, and gradients."""
    network = AceStep(AceStepConfig.from_dict(NETWORK | {"sliding_window": 8}))
    network.init_weights(torch.Generator().manual_seed(0))
    TrainerConfig(recompute=what, compile=compiled).prepare(network.decoder.layers)
    saved = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    x_t = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network.velocity(x_t, torch.tensor([0.2, 0.7]), conditions(2, 40)).square().mean()
    loss.backward()
    return saved, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def compiled(ways: Sequence[Recompute]) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """Frames that were compiled, and gradients, for each way of recomputing."""
    made = []
    for what in ways:
        torch._dynamo.reset()
        counters.clear()
        _, gradients = step(what, compiled=True)
        made.append((counters["frames"]["ok"], gradients))
    return made
