"""Optimisers and schedules."""

from __future__ import annotations

import copy
from io import BytesIO

import pytest
import torch
from torch import nn

from acestep.training.lr_schedules import (
    WarmupConstant,
    WarmupCosine,
    WarmupInverseRoot,
    WarmupLinear,
    WarmupStableDecay,
)
from acestep.training.optim import AdamW, AdamW8bit, Muon, Prodigy
from acestep.training.trainer import TrainerConfig


def test_cosine_schedule_rises_linearly_and_falls_to_floor() -> None:
    schedule = WarmupCosine(warmup=4, floor=0.1)
    assert [schedule(step, 104) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule(4, 104) == 1.0
    assert schedule(54, 104) == pytest.approx(0.55)
    assert schedule(104, 104) == pytest.approx(0.1)
    assert all(schedule(step, 104) >= schedule(step + 1, 104) for step in range(4, 104))


def test_no_warmup_starts_at_the_peak() -> None:
    assert WarmupCosine(warmup=0)(0, 10) == 1.0
    assert WarmupConstant(warmup=0)(0, 10) == 1.0


def test_a_warmup_longer_than_the_run_never_passes_the_peak() -> None:
    assert [WarmupCosine(warmup=10)(step, 3) for step in range(3)] == [0.1, 0.2, pytest.approx(0.3)]
    assert WarmupConstant(warmup=2)(100, 3) == 1.0


def test_vectors_are_not_decayed() -> None:
    layer = nn.Linear(3, 2)
    optimizer = AdamW(lr=0.1, weight_decay=0.5)(layer.named_parameters())
    before = [parameter.detach().clone() for parameter in (layer.weight, layer.bias)]
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight, before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, before[1])


class Net(nn.Module):
    """Two layers large enough for moments of one byte, a convolution before them, and vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_in = nn.Conv1d(8, 64, 1)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj_in(x).transpose(1, 2)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def fit(net: Net, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    x = torch.randn(4, 8, 5, generator=torch.Generator().manual_seed(0))
    losses = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = (net(x) - 1).square().mean()
        loss.backward()
        losses.append(loss.item())
        return losses[-1]

    for _ in range(steps):
        optimizer.step(closure)
    return losses


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


# torchao compiles the step of its 8-bit optimiser, which takes a while.
KINDS = ["adamw", "prodigy", "muon", pytest.param("8bit", marks=pytest.mark.slow)]
EVERY = {"adamw": AdamW(lr=3e-3), "8bit": AdamW8bit(lr=3e-3), "prodigy": Prodigy(), "muon": Muon(lr=3e-3)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimiser_lowers_the_loss_and_resumes_from_its_state(net: Net, kind: str) -> None:
    optimizer = EVERY[kind](net.named_parameters())
    first = fit(net, optimizer, 60)
    assert first[-1] < 0.7 * first[0]
    again = copy.deepcopy(net)
    buffer = BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    restored = EVERY[kind](again.named_parameters())
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    assert fit(again, restored, 3) == fit(net, optimizer, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_nothing_moves(net: Net, kind: str) -> None:
    optimizer = EVERY[kind](net.named_parameters())
    fit(net, optimizer, 2)
    before = copy.deepcopy(net.state_dict())
    optimizer.zero_grad(set_to_none=True)
    optimizer.step(lambda: 0.0)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.slow
def test_8bit_moments_take_a_quarter_of_the_bytes(net: Net) -> None:
    optimizer = AdamW8bit()(net.named_parameters())
    fit(net, optimizer, 1)
    moment = optimizer.state[net.layers[0].weight]["exp_avg"]
    assert moment.codes.dtype == torch.uint8


def test_muon_updates_of_layer_matrices_are_orthogonal(net: Net) -> None:
    before = net.layers[0].weight.detach().clone()
    optimizer = Muon(lr=0.1, weight_decay=0.0)(net.named_parameters())
    theirs = {id(p) for group in optimizer.param_groups if "momentum" in group for p in group["params"]}
    assert theirs == {id(layer.weight) for layer in net.layers}
    fit(net, optimizer, 1)
    singular = torch.linalg.svdvals(before - net.layers[0].weight.detach()) / (0.1 * 0.2 * 8)
    assert singular[:10].median().item() == pytest.approx(1.0, abs=0.35)
    with pytest.raises(ValueError, match=r"optimizer.matrices=nothing: matches no trained matrix"):
        Muon(matrices="nothing")(net.named_parameters())


def test_learning_rates_by_name_and_layer() -> None:
    named = Net().named_parameters()
    groups = AdamW(lr=1.0, layer_decay=0.5, rates={"^proj_in": 0.1}).groups(named)
    rates = {(group["lr"], group["weight_decay"] > 0): len(group["params"]) for group in groups}
    assert rates == {(1.0, True): 1, (0.5, True): 1, (0.1, True): 1, (1.0, False): 1, (0.5, False): 1, (0.1, False): 1}


def test_final_values_of_schedules() -> None:
    assert WarmupLinear(warmup=10, floor=0.1)(60, 110) == pytest.approx(0.55)
    assert WarmupLinear(warmup=10, floor=0.1)(110, 110) == pytest.approx(0.1)
    stable = WarmupStableDecay(warmup=10, decay=0.2)
    assert [stable(step, 100) for step in (0, 9, 50, 80, 90, 100)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0])
    root = WarmupInverseRoot(warmup=100)
    assert [root(step, 0) for step in (49, 99, 399)] == pytest.approx([0.5, 1, 0.5])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdamW(lr=0), "optimizer.lr=0: need > 0"),
        (lambda: AdamW(weight_decay=-1), "optimizer.weight_decay=-1"),
        (lambda: AdamW(betas=(0.9, 1.0)), "optimizer.betas"),
        (lambda: AdamW(layer_decay=0.0), "optimizer.layer_decay=0"),
        (lambda: AdamW(rates={"x": -1.0}), "optimizer.rates.x=-1"),
        (lambda: Prodigy(layer_decay=0.5), "optimizer.rates, optimizer.layer_decay"),
        (lambda: Muon(momentum=1.0), "optimizer.momentum=1"),
        (lambda: WarmupStableDecay(decay=0.0), "lr.decay=0"),
        (lambda: WarmupCosine(warmup=-1), "lr.warmup=-1"),
        (lambda: WarmupCosine(floor=2), "lr.floor=2"),
        (lambda: WarmupConstant(warmup=-1), "lr.warmup=-1"),
        (lambda: TrainerConfig(accumulate=0), "trainer.accumulate=0"),
        (lambda: TrainerConfig(gradient_clip=0.0), "trainer.gradient_clip=0"),
    ],
)
def test_invalid_values_raise_with_their_key(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
