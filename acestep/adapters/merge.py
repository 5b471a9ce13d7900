"""Adapters made part of the weights under them."""

from __future__ import annotations

from collections.abc import Iterator

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from acestep.adapters.lora import ADAPTER


def adapted(module: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """The layers of ``module`` that carry an adapter, by name."""
    for name, part in module.named_modules():
        if isinstance(part, BaseTunerLayer) and hasattr(part, "merge"):
            yield name, part


def merge_adapter(module: nn.Module) -> None:
    """Add the adapter in ``module`` to its weights, which then have their own names and form again.

    Raises:
        ValueError: if there is no adapter, or the weights are quantised.
    """
    layers = list(adapted(module))
    if not layers:
        raise ValueError("merge: the network carries no adapter")
    for name, layer in layers:
        base = layer.get_base_layer()
        if not base.weight.is_floating_point() or type(base.weight) is not nn.Parameter:
            raise ValueError(f"merge: the weights under {name} are quantised; load them with adapter.base=own")
        layer.merge(safe_merge=True, adapter_names=[ADAPTER])
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, base)
    del module.peft_config
