"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), as PEFT implements them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

ADAPTER = "default"
"""PEFT's name for the one adapter that a network carries."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Adds ``scale * B @ A`` to every linear layer that ``targets`` names; zero at first, since ``B`` starts at zero.

    Args:
        rank: inner width of the product.
        alpha: the scale is ``alpha / rank``, or ``alpha / sqrt(rank)`` with ``rslora``.
        dropout: rate on the adapter's input while training.
        targets: last parts of the layers' names.
        rslora: rank-stabilised scale (Kalajdzievski 2023, arXiv 2312.03732).
        dora: learns magnitudes apart from directions (Liu et al. 2024, arXiv 2402.09353).
    """

    rank: int = 64
    alpha: float = 128.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise ValueError(f"adapter.rank={self.rank}: need at least 1; adapter=none trains without an adapter")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"adapter.dropout={self.dropout:g}: need 0 <= dropout < 1")
        if not self.targets:
            raise ValueError("adapter.targets=[]: need the name of at least one linear layer, such as q_proj")

    def __call__(self, module: nn.Module, generator: torch.Generator) -> None:
        """Put the adapter into ``module``: its own parameters freeze, the adapter's (fp32) are left to train.

        The forward passes of ``module`` keep their form; initial values of ``A`` come from ``generator``.
        """
        self._check(module)
        with torch.random.fork_rng(devices=[]):
            inject_adapter_in_model(self._config(), module, ADAPTER)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
            if "lora_A" in name:
                bound = 1.0 / math.sqrt(parameter.shape[1])
                parameter.data.uniform_(-bound, bound, generator=generator)

    def _check(self, module: nn.Module) -> None:
        linear = {name.rpartition(".")[2] for name, part in module.named_modules() if isinstance(part, nn.Linear)}
        unknown = [target for target in self.targets if target not in linear]
        if unknown:
            raise ValueError(
                f"adapter.targets: no linear layer is called {unknown[0]}; there are {', '.join(sorted(linear))}"
            )

    def _config(self) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(self.targets),
            use_rslora=self.rslora,
            use_dora=self.dora,
        )
