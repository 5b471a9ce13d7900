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
from torch import Tensor, nn

ADAPTER = "default"
"""PEFT's name of the adapter that is trained, saved and exported."""

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
PRESETS = {
    "attention": _PROJECTIONS,
    "self_attention": tuple(f"self_attn.{name}" for name in _PROJECTIONS),
    "cross_attention": tuple(f"cross_attn.{name}" for name in _PROJECTIONS),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
"""Names for several targets at once."""
NF4_BLOCK = 64
NF4_SCALERS = 256
"""nf4 has a scaler for each block of values, and a scaler for each block of scalers."""


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
        targets: last parts of the layers' names, or names of ``PRESETS``.
        base: storage of the frozen weights.
        dtype: of the adapter's parameters.
    """

    targets: tuple[str, ...] = _PROJECTIONS
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
        targets = self._expanded(module)
        quantize_base(module, self.base)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
            inject_adapter_in_model(self.config(targets), module, ADAPTER)
        for parameter in (parameter for parameter in module.parameters() if parameter.requires_grad):
            parameter.data = parameter.data.to(self.dtype.dtype)

    @abstractmethod
    def config(self, targets: Sequence[str]) -> PeftConfig:
        """The PEFT config for linear layers whose names end in ``targets``."""

    def _expanded(self, module: nn.Module) -> list[str]:
        layers = [f".{name}" for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        targets = [name for target in self.targets for name in PRESETS.get(target, (target,))]
        for target in targets:
            if not any(layer.endswith(f".{target}") for layer in layers):
                known = sorted({layer.rpartition(".")[2] for layer in layers})
                raise ValueError(
                    f"adapter.targets: no linear layer is called {target}; there are {', '.join(known)}, and the "
                    f"presets {', '.join(PRESETS)}"
                )
        return targets


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
            _to_nf4(layer)


def quantize_linears(module: nn.Module, kind: str, set_inductor_config: bool = False) -> None:
    """Store the weights of ``module``'s linear layers in 8 bits, one scale per row, in place, with torchao.

    Args:
        module: the network.
        kind: ``int8`` or ``fp8``.
        set_inductor_config: whether torchao may change torch.compile's settings for the whole process. Training on
            an int8 base does, for faster kernels; generation does not, where it would make compilation much longer.

    Raises:
        ValueError: torchao is not installed.
    """
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_  # optional and slow
    except ImportError as error:
        raise ValueError(
            f"{kind} weights: need torchao; pip install torchao, or choose another memory or adapter.base"
        ) from error
    config = Int8WeightOnlyConfig if kind == "int8" else Float8WeightOnlyConfig
    quantize_(
        module, config(set_inductor_config=set_inductor_config), filter_fn=lambda part, _: type(part) is nn.Linear
    )


def fits_nf4(weight: Tensor) -> bool:
    """Whether ``weight`` can be stored in nf4: it must fill whole blocks of scalers. Others keep their dtype."""
    return weight.numel() % (NF4_BLOCK * NF4_SCALERS) == 0


def _to_nf4(layer: nn.Linear) -> None:
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4  # optional and slow to import

    if fits_nf4(layer.weight):
        layer.weight = nn.Parameter(to_nf4(layer.weight.detach(), NF4_BLOCK, NF4_SCALERS), requires_grad=False)
