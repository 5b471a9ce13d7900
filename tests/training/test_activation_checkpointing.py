"""Recomputing activations saves memory and changes no gradient."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from tiny import NETWORK
from training import steps

from acestep.models.acestep import AceStep, AceStepConfig
from acestep.training.activation_checkpointing import Recompute
from acestep.training.flops import StepFlops


@pytest.mark.parametrize("what", [Recompute.full, Recompute.selective])
def test_gradients_are_the_same(what: Recompute) -> None:
    (everything, plain), (less, again) = steps.step(Recompute.none), steps.step(what)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-5)
    if what is Recompute.full:
        assert less < 0.8 * everything


@pytest.mark.slow
@pytest.mark.long
def test_compiled_gradients_are_the_same() -> None:
    ways, (_, plain) = (Recompute.none, Recompute.full), steps.step(Recompute.none)
    # In a process without the checks of shapes that tests run under, which the compiler does not take.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        results = pool.submit(steps.compiled, ways).result()
    for what, (frames, gradients) in zip(ways, results, strict=True):
        assert frames == 2, "one for each kind of layer"
        for name, gradient in plain.items():
            assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), f"{what}: {name}"


def test_step_flops_match_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = AceStep(AceStepConfig.from_dict(NETWORK | {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128}))
    network.init_weights(torch.Generator().manual_seed(0))
    x_t = torch.randn(2, 200, 64)
    with FlopCounterMode(display=False) as counter:
        network.velocity(x_t, torch.tensor([0.2, 0.7]), steps.conditions(2, 200)).square().mean().backward()
    assert StepFlops(network)((2, 200), 5) == pytest.approx(counter.get_total_flops(), rel=0.1)
