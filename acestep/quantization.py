"""Weights of linear layers in 8 or 4 bits (int8, fp8, nf4), by torchao: for inference and for bases of adapters."""

from __future__ import annotations

from torch import Tensor, nn

NF4_BLOCK = 64
NF4_SCALERS = 256
"""nf4 has a scaler for each block of values, and a scaler for each block of scalers."""


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


def quantize_to_nf4(layer: nn.Linear) -> None:
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4  # optional and slow to import

    if fits_nf4(layer.weight):
        layer.weight = nn.Parameter(to_nf4(layer.weight.detach(), NF4_BLOCK, NF4_SCALERS), requires_grad=False)
