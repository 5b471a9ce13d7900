"""What every kind of adapter has in common, and LoRA (Hu et al. 2021, arXiv 2106.09685), as PEFT implements it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from torch import nn

from acestep.adapters.base import Base, Kept, hold

ADAPTER = "default"
"""PEFT's name for the one adapter that a network carries."""

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
PRESETS = {
    "attention": _PROJECTIONS,
    "self_attention": tuple(f"self_attn.{name}" for name in _PROJECTIONS),
    "cross_attention": tuple(f"cross_attn.{name}" for name in _PROJECTIONS),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
"""Names for several targets at once."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Small trained additions to the linear layers that ``targets`` name; they change nothing at first.

    Args:
        targets: last parts of the layers' names, or names of ``PRESETS``.
        base: how the frozen weights are held.
        dtype: of the adapter's own parameters.
    """

    targets: tuple[str, ...] = _PROJECTIONS
    base: Base = Base.own
    dtype: Kept = Kept.float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if not self.targets:
            raise ValueError("adapter.targets=[]: need the name of at least one linear layer, such as q_proj")

    def __call__(self, module: nn.Module, generator: torch.Generator) -> None:
        """Put the adapter into ``module``: its own parameters freeze, the adapter's are left to train.

        The forward passes of ``module`` keep their form; initial values come from ``generator``.
        """
        targets = self._expanded(module)
        hold(module, self.base)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
            inject_adapter_in_model(self.config(targets), module, ADAPTER)
        for parameter in (parameter for parameter in module.parameters() if parameter.requires_grad):
            parameter.data = parameter.data.to(self.dtype.dtype)

    def config(self, targets: Sequence[str]) -> PeftConfig:
        """As PEFT names it."""
        raise NotImplementedError

    def _expanded(self, module: nn.Module) -> list[str]:
        layers = [f".{name}" for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        targets = [name for target in self.targets for name in PRESETS.get(target, (target,))]
        for target in targets:
            if not any(layer.endswith(f".{target}") for layer in layers):
                there = sorted({layer.rpartition(".")[2] for layer in layers})
                raise ValueError(
                    f"adapter.targets: no linear layer is called {target}; there are {', '.join(there)}, and the "
                    f"presets {', '.join(PRESETS)}"
                )
        return targets


@dataclass(frozen=True, kw_only=True)
class Ranked(Adapter):
    """An adapter of products of narrow matrices.

    Args:
        rank: inner width of the products.
        alpha: the products are scaled by ``alpha / rank``.
        rank_pattern: other ranks for layers whose name ends in a key, a regular expression.
        alpha_pattern: other alphas, likewise.
    """

    rank: int = 64
    alpha: float = 128.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for rank in (self.rank, *self.rank_pattern.values()):
            if rank < 1:
                raise ValueError(f"adapter.rank={rank}: need at least 1; adapter=none trains without an adapter")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if not 0 < alpha < math.inf:
                raise ValueError(f"adapter.alpha={alpha:g}: need > 0, a finite number")

    def _patterns(self) -> dict[str, dict[str, float]]:
        return {"rank_pattern": dict(self.rank_pattern), "alpha_pattern": dict(self.alpha_pattern)}


@dataclass(frozen=True, kw_only=True)
class LoRA(Ranked):
    """Adds ``scale * B @ A``; ``B`` starts at zero.

    Args:
        dropout: rate on the adapter's input while training.
        rslora: rank-stabilised scale, ``alpha / sqrt(rank)`` (Kalajdzievski 2023, arXiv 2312.03732).
        dora: learns magnitudes apart from directions (Liu et al. 2024, arXiv 2402.09353).
    """

    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"adapter.dropout={self.dropout:g}: need 0 <= dropout < 1")
        if self.dora and self.base is Base.nf4:
            raise ValueError("adapter.dora=true: needs the norms of whole weights; use another adapter.base than nf4")

    def config(self, targets: Sequence[str]) -> LoraConfig:
        """As PEFT names it."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(targets),
            use_rslora=self.rslora,
            use_dora=self.dora,
            **self._patterns(),
        )
