"""Adapters as other programs read them: one safetensors file under diffusers' or ComfyUI's names.

Sources: diffusers ``AceStepLoraLoaderMixin``; ComfyUI ``comfy/lora.py`` and ``comfy/weight_adapter``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path

import torch
from peft.tuners.loha.layer import LoHaLayer
from peft.tuners.lokr.layer import LoKrLayer
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from acestep.adapters.lora import ADAPTER
from acestep.adapters.merge import adapted
from acestep.files import atomic

DIFFUSERS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}


class AdapterLayout(Enum):
    """Whose names: ``diffusers`` (LoRA only) or ``comfyui`` (LoRA, DoRA, LoKr, LoHa)."""

    diffusers = "diffusers"
    comfyui = "comfyui"


def export_adapter(module: nn.Module, file: Path, layout: AdapterLayout) -> Path:
    """Write the adapter in ``module``, the DiT, to ``file``.

    Raises:
        ValueError: if the layout has no form for this kind of adapter.
    """
    name_and_write: dict[AdapterLayout, Callable[[str, BaseTunerLayer], dict[str, Tensor]]] = {
        AdapterLayout.diffusers: _diffusers,
        AdapterLayout.comfyui: _comfyui,
    }
    tensors: dict[str, Tensor] = {}
    for name, layer in adapted(module):
        tensors |= name_and_write[layout](name, layer)
    if not tensors:
        raise ValueError("export: the network carries no adapter")
    with atomic(file) as aside:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, aside)
    return file


def _diffusers(name: str, layer: BaseTunerLayer) -> dict[str, Tensor]:
    if not isinstance(layer, LoraLayer) or layer.lora_magnitude_vector:
        raise ValueError("export: diffusers reads plain LoRA alone; merge the adapter, or export it for ComfyUI")
    parent, _, last = name.rpartition(".")
    theirs = f"transformer.{parent}.{DIFFUSERS.get(last, last)}"
    # It reads no alpha, and takes the scale for 1.
    return {
        f"{theirs}.lora_A.weight": layer.lora_A[ADAPTER].weight,
        f"{theirs}.lora_B.weight": layer.lora_B[ADAPTER].weight * layer.scaling[ADAPTER],
    }


def _comfyui(name: str, layer: BaseTunerLayer) -> dict[str, Tensor]:
    theirs = f"diffusion_model.decoder.{name}"
    if isinstance(layer, LoraLayer):
        made = {
            f"{theirs}.lora_down.weight": layer.lora_A[ADAPTER].weight,
            f"{theirs}.lora_up.weight": layer.lora_B[ADAPTER].weight,
            f"{theirs}.alpha": torch.tensor(layer.scaling[ADAPTER] * layer.lora_A[ADAPTER].weight.shape[0]),
        }
        if layer.lora_magnitude_vector:
            made[f"{theirs}.dora_scale"] = layer.lora_magnitude_vector[ADAPTER].weight[:, None]
        return made
    if isinstance(layer, LoKrLayer | LoHaLayer):
        return _factors(theirs, layer)
    raise ValueError("export: ComfyUI reads no OFT of this form; merge the adapter")


def _factors(theirs: str, layer: LoKrLayer | LoHaLayer) -> dict[str, Tensor]:
    """The factors of LoKr or LoHa; their scale goes into the first, since without a rank no alpha is read."""
    held = {name: getattr(layer, name) for name in layer.adapter_layer_names if ADAPTER in getattr(layer, name)}
    made = {f"{theirs}.{name}": values[ADAPTER] for name, values in held.items()}
    first = next(name for name in ("lokr_w1", "lokr_w1_a", "hada_w1_a") if name in held)
    made[f"{theirs}.{first}"] = made[f"{theirs}.{first}"] * layer.scaling[ADAPTER]
    rank = next((values[ADAPTER].shape[0] for name, values in held.items() if name.endswith("_b")), None)
    if rank:
        made[f"{theirs}.alpha"] = torch.tensor(float(rank))
    return made
