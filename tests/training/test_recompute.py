"""Recomputing activations saves memory and changes no gradient."""

from __future__ import annotations

import pytest
import torch
from tiny import NETWORK

from acestep.models.acestep import AceStep, AceStepConfig
from acestep.training.flops import StepCost
from acestep.training.recompute import Recompute, recompute
from acestep.types import Conditions


def conditions(songs: int, frames: int) -> Conditions:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(songs, 5, NETWORK["encoder_hidden_size"], generator=generator)
    context = torch.randn(songs, frames, 128, generator=generator)
    return Conditions(states, torch.ones(songs, 5).bool(), context, torch.ones(songs, frames).bool())


def step(what: Recompute) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes kept for the backward pass, and gradients."""
    network = AceStep(AceStepConfig.from_dict(NETWORK))
    network.init_weights(torch.Generator().manual_seed(0))
    recompute(network.decoder.layers, what)
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    x_t = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network.velocity(x_t, torch.tensor([0.2, 0.7]), conditions(2, 40)).square().mean()
    loss.backward()
    return kept, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("what", [Recompute.full, Recompute.selective])
def test_gradients_are_the_same(what: Recompute) -> None:
    (everything, plain), (less, again) = step(Recompute.none), step(what)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-5)
    if what is Recompute.full:
        assert less < 0.8 * everything


def test_operations_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = AceStep(AceStepConfig.from_dict(NETWORK | {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128}))
    network.init_weights(torch.Generator().manual_seed(0))
    x_t = torch.randn(2, 200, 64)
    with FlopCounterMode(display=False) as counter:
        network.velocity(x_t, torch.tensor([0.2, 0.7]), conditions(2, 200)).square().mean().backward()
    assert StepCost(network)((2, 200), 5) == pytest.approx(counter.get_total_flops(), rel=0.1)
