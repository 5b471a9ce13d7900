"""Base class of all adapter kinds, and the storage of the frozen weights under an adapter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from peft import PeftConfig, inject_adapter_in_model
from torch import nn

from acestep.adapters.targets import PROJECTIONS, expand_targets
from acestep.quantization import quantize_linears, quantize_to_nf4

ADAPTER = "default"
"""PEFT's name of the adapter that is trained, saved and exported."""


class BaseFormat(Enum):
    """Storage of the weights under an adapter: ``own`` as loaded, all in bfloat16, or linear layers in 8 or 4 bits.

    int8 has one scale for each output channel, nf4 one for each 64 values (Dettmers et al. 2023, arXiv 2305.14314),
    both by torchao.
    """

    own = "own"
    bfloat16 = "bfloat16"
    int8 = "int8"
    nf4 = "nf4"


class AdapterDtype(Enum):
    """Dtype of an adapter's parameters; in bfloat16, updates below 1/256 of a value are lost."""

    float32 = "float32"
    bfloat16 = "bfloat16"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self is AdapterDtype.float32 else torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """Base class: small trained additions to the linear layers in ``targets``, without effect at initialisation.

    To add a kind that PEFT implements, subclass and return its PEFT config::

        @dataclass(frozen=True, kw_only=True)
        class VeRA(Adapter):
            rank: int = 256

            def config(self, targets):
                return VeraConfig(r=self.rank, target_modules=list(targets))

    Training, saving, loading and merging then work for it.

    Args:
        targets: last parts of the layers' names, or names of ``TARGET_PRESETS``.
        base: storage of the frozen weights.
        dtype: of the adapter's parameters.
    """

    targets: tuple[str, ...] = PROJECTIONS
    base: BaseFormat = BaseFormat.own
    dtype: AdapterDtype = AdapterDtype.float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if not self.targets:
            raise ValueError("adapter.targets=[]: need the name of at least one linear layer, such as q_proj")

    def __call__(self, module: nn.Module, generator: torch.Generator) -> None:
        """Insert the adapter into ``module`` in place, and freeze all other parameters.

        Initial values come from ``generator``; torch's global generator is unchanged.
        """
        targets = expand_targets(self.targets, module)
        quantize_base(module, self.base)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
            inject_adapter_in_model(self.config(targets), module, ADAPTER)
        for parameter in (parameter for parameter in module.parameters() if parameter.requires_grad):
            parameter.data = parameter.data.to(self.dtype.dtype)

    @abstractmethod
    def config(self, targets: Sequence[str]) -> PeftConfig:
        """The PEFT config for linear layers whose names end in ``targets``."""


@dataclass(frozen=True, kw_only=True)
class RankedAdapter(Adapter):
    """An adapter of low-rank products.

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

    def _shared(self, targets: Sequence[str], alpha: str = "alpha") -> dict[str, Any]:
        """Arguments that PEFT's configs of low-rank adapters have in common; ``alpha`` is PEFT's name of it."""
        patterns = {"rank_pattern": dict(self.rank_pattern), "alpha_pattern": dict(self.alpha_pattern)}
        return {"r": self.rank, alpha: self.alpha, "target_modules": list(targets), **patterns}


def peft_configs(module: nn.Module) -> dict[str, Any]:
    """The configs of the adapters in ``module`` by name; ``PeftConfig`` itself declares few of their attributes."""
    configs = module.peft_config
    assert isinstance(configs, dict)
    return configs


def quantize_base(module: nn.Module, base: BaseFormat) -> None:
    """Convert the weights of ``module`` to ``base``, in place, and freeze them."""
    module.requires_grad_(False)
    if base is BaseFormat.bfloat16:
        module.to(torch.bfloat16)
    elif base is BaseFormat.int8:
        quantize_linears(module, "int8", set_inductor_config=True)
    elif base is BaseFormat.nf4:
        for layer in [part for part in module.modules() if isinstance(part, nn.Linear)]:
            quantize_to_nf4(layer)
