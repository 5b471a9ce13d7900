"""The frozen weights under an adapter in fewer bits. Knows linear layers; knows no adapter."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn


class Base(Enum):
    """How the weights under an adapter are held: ``own`` as loaded, all in bfloat16, or linear layers in 8 or 4 bits.

    int8 has one scale for each output channel, nf4 one for each 64 values (Dettmers et al. 2023, arXiv 2305.14314),
    both as torchao holds them.
    """

    own = "own"
    bfloat16 = "bfloat16"
    int8 = "int8"
    nf4 = "nf4"


class Kept(Enum):
    """The type of an adapter's own parameters; in bfloat16, steps below 1/256 of a number are lost."""

    float32 = "float32"
    bfloat16 = "bfloat16"

    @property
    def dtype(self) -> torch.dtype:
        """As torch names it."""
        return torch.float32 if self is Kept.float32 else torch.bfloat16


BLOCK = 64
SCALERS = 256


def hold(module: nn.Module, base: Base) -> None:
    """Bring ``module`` into the form ``base``, in place, and freeze it."""
    module.requires_grad_(False)
    if base is Base.bfloat16:
        module.to(torch.bfloat16)
    elif base is Base.int8:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # optional, and slow to import

        quantize_(module, Int8WeightOnlyConfig())
    elif base is Base.nf4:
        for layer in [part for part in module.modules() if isinstance(part, nn.Linear)]:
            _to_nf4(layer)


def fits_nf4(weight: Tensor) -> bool:
    """Whether ``weight`` is held in 4 bits; small or odd matrices, whose values do not fill blocks of scalers, stay."""
    return weight.numel() % (BLOCK * SCALERS) == 0


def _to_nf4(layer: nn.Linear) -> None:
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4

    if fits_nf4(layer.weight):
        layer.weight = nn.Parameter(to_nf4(layer.weight.detach(), BLOCK, SCALERS), requires_grad=False)
