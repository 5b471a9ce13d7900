"""Optimisers as values. Works on parameters and their names, and depends on no network."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

NamedParameters = Iterable[tuple[str, nn.Parameter]]
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(ABC):
    """Settings that all optimisers share. Vectors (norms, biases) are not decayed.

    Args:
        lr: peak learning rate.
        weight_decay: decoupled decay of matrices.
        rates: factors on the learning rate, by regular expression over parameter names; the first match counts.
        layer_decay: factor on the learning rate for each layer further from the output, below 1 to move early layers
            less.
        betas: decay rates of Adam's two moments.
    """

    lr: float = 1e-4
    weight_decay: float = 0.01
    rates: Mapping[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr={self.lr:g}: need > 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay:g}: need >= 0 (0 switches it off)")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay={self.layer_decay:g}: need above 0 to 1 (1: all layers alike)")
        for pattern, rate in self.rates.items():
            if not rate >= 0:
                raise ValueError(f"optimizer.rates.{pattern}={rate:g}: need >= 0, a factor on optimizer.lr")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas={list(self.betas)}: need two numbers in [0, 1)")

    @abstractmethod
    def __call__(self, named: NamedParameters) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""

    def groups(self, named: NamedParameters) -> list[dict[str, Any]]:
        """Parameter groups by learning rate and decay: matrices first, by decreasing learning rate."""
        named = list(named)
        depth = 1 + max((int(match[1]) for name, _ in named if (match := LAYER.search(name))), default=0)
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in named:
            groups.setdefault((self._factor(name, depth), parameter.ndim < 2), []).append(parameter)
        return [
            {"params": parameters, "lr": self.lr * factor, "weight_decay": 0.0 if is_vector else self.weight_decay}
            for (factor, is_vector), parameters in sorted(groups.items(), key=lambda item: (item[0][1], -item[0][0]))
        ]

    def state_bytes(self, named: NamedParameters) -> int:
        """Bytes of the optimiser states of these parameters: two float32 moments, unless a subclass differs."""
        return sum(8 * parameter.numel() for _, parameter in named)

    def _factor(self, name: str, depth: int) -> float:
        rate = next((rate for pattern, rate in self.rates.items() if re.search(pattern, name)), 1.0)
        layer = LAYER.search(name)
        return rate * self.layer_decay ** (depth - 1 - int(layer[1])) if layer else rate


@dataclass(frozen=True, kw_only=True)
class AdamW(OptimizerConfig):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101).

    Args:
        eps: added to the denominator.
        fused: one kernel for all parameters.
    """

    eps: float = 1e-8
    fused: bool = True

    def __call__(self, named: NamedParameters) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.groups(named), lr=self.lr, betas=self.betas, eps=self.eps, fused=self.fused)


@dataclass(frozen=True, kw_only=True)
class AdamW8bit(OptimizerConfig):
    """AdamW with moments of one byte each (Dettmers et al. 2022, arXiv 2110.02861), as torchao implements it.

    Differs from ``AdamW``: tensors of fewer than 4,096 values keep their moments in fp32.

    Args:
        eps: added to the denominator.
    """

    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        # Registers the class of the moments with torch, which checkpoints need; optional, and slow to import.
        import torchao.optim  # noqa: F401

    def state_bytes(self, named: NamedParameters) -> int:
        """Two bytes a value, and two float32 scales for each 256 values."""
        sizes = [parameter.numel() for _, parameter in named]
        return sum(2 * size + 8 * size // 256 if size >= 4096 and size % 256 == 0 else 8 * size for size in sizes)

    def __call__(self, named: NamedParameters) -> torch.optim.Optimizer:
        from torchao.optim import AdamW8bit as TorchaoAdamW8bit

        optimizer: torch.optim.Optimizer = TorchaoAdamW8bit(
            self.groups(named), lr=self.lr, betas=self.betas, eps=self.eps
        )
        return optimizer


@dataclass(frozen=True, kw_only=True)
class Prodigy(OptimizerConfig):
    """Prodigy estimates its step size (Mishchenko and Defazio 2023, arXiv 2306.06101); ``lr`` is a factor on it.

    Args:
        lr: factor on the estimated step size; usually 1.
        growth: largest factor by which the step size grows at once; ``None`` is no bound.
    """

    lr: float = 1.0
    growth: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rates or self.layer_decay != 1:
            raise ValueError("optimizer.rates, optimizer.layer_decay: Prodigy estimates one rate for all; use another")

    def state_bytes(self, named: NamedParameters) -> int:
        """Two moments, the initial value, and a sum of gradients."""
        return sum(16 * parameter.numel() for _, parameter in named)

    def __call__(self, named: NamedParameters) -> torch.optim.Optimizer:
        from prodigyopt import Prodigy as ProdigyOptimizer  # optional

        optimizer: torch.optim.Optimizer = ProdigyOptimizer(
            self.groups(named),
            lr=self.lr,
            betas=self.betas,
            use_bias_correction=True,
            safeguard_warmup=True,  # without it, a warm-up makes the estimated step size too large
            growth_rate=math.inf if self.growth is None else self.growth,
        )
        return optimizer


@dataclass(frozen=True, kw_only=True)
class Muon(OptimizerConfig):
    """Orthogonalised momentum (Jordan 2024) for the layers' matrices, and AdamW for the rest, at one learning rate.

    Updates of matrices are scaled to AdamW's root mean square (Liu et al. 2025, arXiv 2502.16982, section 2.2), so that
    AdamW's learning rates and decays apply.

    Args:
        momentum: decay rate of the momentum.
        matrices: regular expression over parameter names; matching parameters with two axes are optimised by Muon.
    """

    momentum: float = 0.95
    matrices: str = r"(^|\.)layers\."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum={self.momentum:g}: need 0 <= momentum < 1")

    def state_bytes(self, named: NamedParameters) -> int:
        """One momentum of a matrix, AdamW's moments of the rest."""
        matrices, rest = self._split(named)
        return sum(4 * parameter.numel() for _, parameter in matrices) + super().state_bytes(rest)

    def _split(self, named: NamedParameters) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
        """Parameters of Muon, and of AdamW."""
        matrices: list[tuple[str, nn.Parameter]] = []
        rest: list[tuple[str, nn.Parameter]] = []
        for name, parameter in named:
            is_matrix = parameter.ndim == 2 and re.search(self.matrices, name)
            (matrices if is_matrix else rest).append((name, parameter))
        return matrices, rest

    def __call__(self, named: NamedParameters) -> torch.optim.Optimizer:
        matrices, rest = self._split(named)
        if not matrices:
            raise ValueError(f"optimizer.matrices={self.matrices}: matches no trained matrix; use optimizer=adamw")
        parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(self.groups(matrices), momentum=self.momentum, adjust_lr_fn="match_rms_adamw")
        ]
        if rest:
            parts.append(torch.optim.AdamW(self.groups(rest), lr=self.lr, betas=self.betas))
        return CombinedOptimizer(parts)


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimisers as one: each steps its own parameters; groups, states and checkpoints are common."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = list(parts)
        self._sizes = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # overloaded
        """One step of every part, after one call of ``closure``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            # Loading a checkpoint replaces groups and state of this object; the parts follow.
            part.param_groups, part.state = self.param_groups[first : first + size], self.state
            part.step()
            first += size
        return loss
