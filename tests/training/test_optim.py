"""Optimisers and schedules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from acestep.training.optim import AdamW, WarmupConstant, WarmupCosine
from acestep.training.trainer import TrainerConfig


def test_warmup_rises_evenly_and_the_cosine_falls_to_its_floor() -> None:
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
    optimizer = AdamW(lr=0.1, weight_decay=0.5)(layer.parameters())
    before = [parameter.detach().clone() for parameter in (layer.weight, layer.bias)]
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight, before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, before[1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdamW(lr=0), "optimizer.lr=0: need > 0"),
        (lambda: AdamW(weight_decay=-1), "optimizer.weight_decay=-1"),
        (lambda: AdamW(betas=(0.9, 1.0)), "optimizer.betas"),
        (lambda: WarmupCosine(warmup=-1), "lr.warmup=-1"),
        (lambda: WarmupCosine(floor=2), "lr.floor=2"),
        (lambda: WarmupConstant(warmup=-1), "lr.warmup=-1"),
        (lambda: TrainerConfig(accumulate=0), "trainer.accumulate=0"),
        (lambda: TrainerConfig(gradient_clip=0.0), "trainer.gradient_clip=0"),
    ],
)
def test_impossible_values_are_refused_by_name(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
