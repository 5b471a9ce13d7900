"""Kernel distances against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from acestep.evaluation.metrics.kad import kad, kid, median_bandwidth


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_points_each():
    expected = 100 * (2 * math.exp(-2) - 0.5 * (3 * math.exp(-0.5) + math.exp(-4.5)))
    value = kad(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]]), bandwidth=1.0)
    assert value == pytest.approx(expected, abs=1e-9)
    assert value == pytest.approx(-64.46799213, abs=1e-7)


def test_population_value():
    def overlap(variance: float, squared: float) -> float:
        return (4 / (4 + variance)) ** 2 * math.exp(-squared / (2 * (4 + variance)))

    expected = 100 * (overlap(2, 0) + overlap(2.88, 0) - 2 * overlap(2.44, 1))
    assert expected == pytest.approx(6.852826250, abs=1e-8)
    shift = torch.tensor([1.0, 0, 0, 0])
    values = [kad(normal(400, 4, seed), 1.2 * normal(400, 4, 100 + seed) + shift, 2.0) for seed in range(20)]
    assert np.mean(values) == pytest.approx(expected, abs=0.2)


def test_identical_sets_are_below_zero_and_equal_distributions_around_it():
    x = normal(300, 16)
    kernel = torch.exp(-torch.cdist(x, x).square() / (2 * 4.0**2))
    off = float((kernel.sum() - 300) / (300 * 299))
    assert kad(x, x, 4.0) == pytest.approx(200 / 300 * (off - 1), abs=1e-9)
    values = [kad(normal(200, 8, seed), normal(200, 8, 50 + seed), 3.0) for seed in range(20)]
    assert abs(np.mean(values)) < 0.05


def test_the_bandwidth_comes_from_the_reference():
    x, y = normal(200, 8), 2 * normal(200, 8, 1)
    assert kad(x, y, median_bandwidth(x)) != pytest.approx(kad(y, x, median_bandwidth(y)), rel=1e-3)
    assert kad(x, y, 3.0) == pytest.approx(kad(y, x, 3.0), abs=1e-9)


def test_blocks_do_not_change_the_value():
    x, y = normal(97, 5), normal(61, 5, 1) + 1
    assert kad(x, y, 2.0, block=10) == pytest.approx(kad(x, y, 2.0), abs=1e-10)


def test_kid():
    x, y = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1.0, 1], [0, 0]])
    assert kid(x, y) == pytest.approx(-2.375, abs=1e-12)


def test_kid_agrees_with_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = normal(120, 16), 1.2 * normal(120, 16, 1) + 0.1
    same = nn.Identity()
    same.num_features = 16
    peer = KernelInceptionDistance(feature=same, subsets=1, subset_size=120, normalize=True).set_dtype(torch.float64)
    peer.update(x, real=True)
    peer.update(y, real=False)
    assert kid(x, y) == pytest.approx(float(peer.compute()[0]), abs=1e-10)


def test_too_few_or_broken_windows_are_errors():
    with pytest.raises(ValueError, match="at least 2 windows"):
        kad(normal(1, 3), normal(5, 3), 1.0)
    with pytest.raises(ValueError, match="NaN"):
        kad(torch.full((4, 3), float("nan")), normal(5, 3), 1.0)
