"""Optimisers and learning-rate schedules as values. Knows parameters; knows no network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); vectors (norms, biases) are not decayed.

    Args:
        lr: peak learning rate.
        weight_decay: decoupled decay of matrices.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        fused: one kernel for all parameters.
    """

    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    fused: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr={self.lr:g}: need > 0")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay:g}: need >= 0 (0 switches it off)")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas={list(self.betas)}: need two numbers in [0, 1)")

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of ``parameters``."""
        parameters = list(parameters)
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=self.lr, betas=self.betas, eps=self.eps, fused=self.fused
        )


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear from 0 to the peak over ``warmup`` steps, then half a cosine down to ``floor`` times the peak."""

    warmup: int = 100
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"lr.warmup={self.warmup}: need >= 0 steps")
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"lr.floor={self.floor:g}: need 0 <= floor <= 1, a share of optimizer.lr")

    def __call__(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at ``step`` of ``steps``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        passed = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * passed))


@dataclass(frozen=True, kw_only=True)
class WarmupConstant:
    """Linear from 0 to the peak over ``warmup`` steps, then the peak."""

    warmup: int = 100

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"lr.warmup={self.warmup}: need >= 0 steps")

    def __call__(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at ``step``."""
        return min(1.0, (step + 1) / max(1, self.warmup))
