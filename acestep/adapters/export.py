"""Export of an adapter to one safetensors file with diffusers' or ComfyUI's names, or into the base weights.

Sources: diffusers ``AceStepLoraLoaderMixin``; ComfyUI ``comfy/lora.py`` and ``comfy/weight_adapter``.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import torch
from peft.tuners.loha.layer import LoHaLayer
from peft.tuners.lokr.layer import LoKrLayer
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from acestep.adapters.base import ADAPTER
from acestep.files import atomic

DIFFUSERS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}


class AdapterLayout(Enum):
    """Tensor names of the exported file: ``diffusers`` (LoRA only) or ``comfyui`` (LoRA, DoRA, LoKr, LoHa)."""

    diffusers = "diffusers"
    comfyui = "comfyui"


def adapter_layers(module: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """The layers of ``module`` with an adapter, by name."""
    for name, part in module.named_modules():
        if isinstance(part, BaseTunerLayer) and hasattr(part, "merge"):
            yield name, part


def merge_adapter(module: nn.Module) -> None:
    """Add the adapter in ``module`` to its weights, in place; parameters have the base's names again.

    Raises:
        ValueError: there is no adapter, or the weights are quantized.
    """
    layers = list(adapter_layers(module))
    if not layers:
        raise ValueError("merge: the network has no adapter")
    for name, layer in layers:
        base = layer.get_base_layer()
        weight = base.get_parameter("weight")
        if not weight.is_floating_point() or type(weight) is not nn.Parameter:
            raise ValueError(f"merge: the weights under {name} are quantized; load them with adapter.base=own")
        layer.merge(safe_merge=True, adapter_names=[ADAPTER])
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, base)
    del module.peft_config


def export_adapter(module: nn.Module, file: Path, layout: AdapterLayout) -> Path:
    """Write the adapter in ``module``, the DiT, to ``file``.

    Raises:
        ValueError: there is no adapter, or the layout does not support its kind.
    """
    convert = {AdapterLayout.diffusers: _diffusers, AdapterLayout.comfyui: _comfyui}[layout]
    tensors: dict[str, Tensor] = {}
    for name, layer in adapter_layers(module):
        tensors |= convert(name, layer)
    if not tensors:
        raise ValueError("export: the network has no adapter")
    with atomic(file) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    return file


def _diffusers(name: str, layer: BaseTunerLayer) -> dict[str, Tensor]:
    if not isinstance(layer, LoraLayer) or layer.lora_magnitude_vector:
        raise ValueError("export: diffusers reads plain LoRA alone; merge the adapter, or export it for ComfyUI")
    parent, _, last = name.rpartition(".")
    prefix = f"transformer.{parent}.{DIFFUSERS.get(last, last)}"
    # diffusers reads no alpha and uses a scale of 1.
    return {
        f"{prefix}.lora_A.weight": _weight(layer.lora_A),
        f"{prefix}.lora_B.weight": _weight(layer.lora_B) * layer.scaling[ADAPTER],
    }


def _comfyui(name: str, layer: BaseTunerLayer) -> dict[str, Tensor]:
    prefix = f"diffusion_model.decoder.{name}"
    if isinstance(layer, LoraLayer):
        tensors = {
            f"{prefix}.lora_down.weight": _weight(layer.lora_A),
            f"{prefix}.lora_up.weight": _weight(layer.lora_B),
            f"{prefix}.alpha": torch.tensor(layer.scaling[ADAPTER] * _weight(layer.lora_A).shape[0]),
        }
        if layer.lora_magnitude_vector:
            tensors[f"{prefix}.dora_scale"] = _weight(layer.lora_magnitude_vector)[:, None]
        return tensors
    if isinstance(layer, LoKrLayer | LoHaLayer):
        return _kronecker_or_hadamard(prefix, layer)
    raise ValueError("export: ComfyUI reads no OFT of this form; merge the adapter")


def _weight(adapters: nn.ModuleDict) -> Tensor:
    return adapters[ADAPTER].get_parameter("weight")


def _kronecker_or_hadamard(prefix: str, layer: LoKrLayer | LoHaLayer) -> dict[str, Tensor]:
    """The factors of LoKr or LoHa, the first multiplied by the scale: without a rank ComfyUI ignores alpha."""
    parameters = {name: getattr(layer, name) for name in layer.adapter_layer_names if ADAPTER in getattr(layer, name)}
    tensors = {f"{prefix}.{name}": values[ADAPTER] for name, values in parameters.items()}
    first = next(name for name in ("lokr_w1", "lokr_w1_a", "hada_w1_a") if name in parameters)
    tensors[f"{prefix}.{first}"] = tensors[f"{prefix}.{first}"] * layer.scaling[ADAPTER]
    rank = next((values[ADAPTER].shape[0] for name, values in parameters.items() if name.endswith("_b")), None)
    if rank:
        tensors[f"{prefix}.alpha"] = torch.tensor(float(rank))
    return tensors
