"""Optimisers as values. Knows parameters and their names; knows no network."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Named = Iterable[tuple[str, nn.Parameter]]
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What every optimiser is told: rate, decay of matrices, and which parameters move at another rate.

    Vectors (norms, biases) are not decayed.

    Args:
        lr: peak learning rate.
        weight_decay: decoupled decay of matrices.
        rates: factors on the rate, by regular expression over parameter names; the first that finds one counts.
        layer_decay: factor on the rate for each layer further from the output, below 1 to move early layers less.
    """

    lr: float = 1e-4
    weight_decay: float = 0.01
    rates: Mapping[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr={self.lr:g}: need > 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay:g}: need >= 0 (0 switches it off)")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay={self.layer_decay:g}: need above 0 to 1 (1: all layers alike)")
        for pattern, rate in self.rates.items():
            if not rate >= 0:
                raise ValueError(f"optimizer.rates.{pattern}={rate:g}: need >= 0, a factor on optimizer.lr")

    def groups(self, named: Named) -> list[dict[str, Any]]:
        """Parameters by learning rate and decay, as torch takes them: matrices first, in the order of their rates."""
        named = list(named)
        depth = 1 + max((int(found[1]) for name, _ in named if (found := LAYER.search(name))), default=0)
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in named:
            groups.setdefault((self._rate(name, depth), parameter.ndim < 2), []).append(parameter)
        return [
            {"params": parameters, "lr": self.lr * rate, "weight_decay": 0.0 if is_vector else self.weight_decay}
            for (rate, is_vector), parameters in sorted(groups.items(), key=lambda item: (item[0][1], -item[0][0]))
        ]

    def state_bytes(self, named: Named) -> int:
        """Bytes of the states of these parameters, in float32: two moments unless a kind says otherwise."""
        return sum(8 * parameter.numel() for _, parameter in named)

    def _rate(self, name: str, depth: int) -> float:
        given = next((rate for pattern, rate in self.rates.items() if re.search(pattern, name)), 1.0)
        layer = LAYER.search(name)
        return given * self.layer_decay ** (depth - 1 - int(layer[1])) if layer else given


def _check_betas(betas: tuple[float, ...]) -> None:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"optimizer.betas={list(betas)}: need two numbers in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101).

    Args:
        betas: decay rates of the two moments.
        eps: added to the denominator.
        fused: one kernel for all parameters.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    fused: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", tuple(self.betas))
        _check_betas(self.betas)

    def __call__(self, named: Named) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""
        return torch.optim.AdamW(self.groups(named), lr=self.lr, betas=self.betas, eps=self.eps, fused=self.fused)


@dataclass(frozen=True, kw_only=True)
class AdamW8bit(Optimizer):
    """AdamW whose moments take one byte each (Dettmers et al. 2022, arXiv 2110.02861), as torchao implements it.

    Differs from ``AdamW``: tensors of fewer than 4,096 values keep their moments in fp32.

    Args:
        betas: decay rates of the two moments.
        eps: added to the denominator.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", tuple(self.betas))
        _check_betas(self.betas)
        # Early, since it tells torch that checkpoints may hold such moments; optional, and slow to import.
        import torchao.optim  # noqa: F401

    def state_bytes(self, named: Named) -> int:
        """Two bytes a value, and two float32 scales for each 256."""
        sizes = [parameter.numel() for _, parameter in named]
        return sum(2 * size + 8 * size // 256 if size >= 4096 and size % 256 == 0 else 8 * size for size in sizes)

    def __call__(self, named: Named) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""
        from torchao.optim import AdamW8bit as Torchao

        return Torchao(self.groups(named), lr=self.lr, betas=self.betas, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class Prodigy(Optimizer):
    """Finds its step size by itself (Mishchenko and Defazio 2023, arXiv 2306.06101); ``lr`` is a factor on it.

    Args:
        lr: factor on the step size that it finds; 1 as a rule.
        betas: decay rates of the two moments.
        growth: most by which the step size grows at once; ``None`` is no bound.
    """

    lr: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    growth: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", tuple(self.betas))
        _check_betas(self.betas)
        if self.rates or self.layer_decay != 1:
            raise ValueError("optimizer.rates, optimizer.layer_decay: Prodigy finds one rate for all; use another")

    def state_bytes(self, named: Named) -> int:
        """Two moments, the start, and a sum of gradients."""
        return sum(16 * parameter.numel() for _, parameter in named)

    def __call__(self, named: Named) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""
        from prodigyopt import Prodigy as Mishchenko  # optional

        return Mishchenko(
            self.groups(named),
            lr=self.lr,
            betas=self.betas,
            use_bias_correction=True,
            safeguard_warmup=True,  # without it, a warm-up makes the step size that it finds too large
            growth_rate=math.inf if self.growth is None else self.growth,
        )


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Orthogonalised momentum (Jordan 2024) for the layers' matrices, and AdamW for all else, at one learning rate.

    Updates of matrices are scaled to AdamW's root mean square (Liu et al. 2025, arXiv 2502.16982, section 2.2), so that
    AdamW's rates and decays fit.

    Args:
        momentum: share of the old momentum that a step keeps.
        matrices: regular expression over names; what it finds and has two axes is Muon's.
        betas: AdamW's.
    """

    momentum: float = 0.95
    matrices: str = r"(^|\.)layers\."
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", tuple(self.betas))
        _check_betas(self.betas)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum={self.momentum:g}: need 0 <= momentum < 1")

    def state_bytes(self, named: Named) -> int:
        """One momentum of a matrix, AdamW's moments of the rest."""
        theirs, rest = self._split(named)
        return sum(4 * parameter.numel() for _, parameter in theirs) + super().state_bytes(rest)

    def _split(self, named: Named) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
        """What is Muon's, and what AdamW's."""
        named = list(named)
        is_matrix = [parameter.ndim == 2 and bool(re.search(self.matrices, name)) for name, parameter in named]
        theirs = [pair for pair, matrix in zip(named, is_matrix, strict=True) if matrix]
        return theirs, [pair for pair, matrix in zip(named, is_matrix, strict=True) if not matrix]

    def __call__(self, named: Named) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""
        theirs, rest = self._split(named)
        if not theirs:
            raise ValueError(f"optimizer.matrices={self.matrices}: finds no trained matrix; use optimizer=adamw")
        parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(self.groups(theirs), momentum=self.momentum, adjust_lr_fn="match_rms_adamw")
        ]
        if rest:
            parts.append(torch.optim.AdamW(self.groups(rest), lr=self.lr, betas=self.betas))
        return Together(parts)


class Together(torch.optim.Optimizer):
    """Several optimisers as one: each steps its own parameters; groups, states and checkpoints are common."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = list(parts)
        self._sizes = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every part, after one call of ``closure``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            # Loading a checkpoint replaces groups and state; the parts follow.
            part.param_groups, part.state = self.param_groups[first : first + size], self.state
            part.step()
            first += size
        return loss
