"""``python -m acestep merge`` and ``export``: adapters in a whole checkpoint, or as a file for other programs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.cli.command import add_command
from acestep.cli.convert import check_new

if TYPE_CHECKING:
    from torch import nn

    from acestep.adapters import AdapterLayout
    from acestep.models.acestep import AceStepConfig
    from acestep.weights.checkpoint import Checkpoint


def merge(options: argparse.Namespace) -> int:
    """Merge an adapter into its base weights: a whole checkpoint.

    Merge an adapter into the weights that it was trained on and write a whole checkpoint. Reads run folders, PEFT
    folders, and the LoRA, DoRA and LoKr files of other trainers.
    """
    from acestep.pipeline.build import named_dtype
    from acestep.weights.save import save_checkpoint

    check_new(options.target, "folder")
    dtype = named_dtype(options.dtype) if options.dtype else None
    checkpoint = merged_checkpoint(options.adapter, options.weights, options.scale)
    print(save_checkpoint(checkpoint, options.target, options.to, dtype))
    return 0


def export(options: argparse.Namespace) -> int:
    """Write an adapter as one file for diffusers or ComfyUI.

    Write an adapter as one safetensors file, for diffusers (LoRA only) or ComfyUI (LoRA, DoRA, LoKr, LoHa). Kinds that
    a program cannot read are refused; merge them instead.
    """
    from acestep.adapters import AdapterLayout

    check_new(options.target, "file")
    print(write_adapter_file(options.adapter, options.target, AdapterLayout(options.to), options.weights))
    return 0


def merged_checkpoint(adapter: Path, weights: str | None = None, scale: float = 1.0) -> Checkpoint:
    """The base checkpoint of ``adapter`` with the adapter merged into its weights, in the stored dtypes.

    Args:
        adapter: a file or folder of any known layout, or a run folder.
        weights: base checkpoint; default: the one named in the adapter's folder.
        scale: of the adapter; 1 as it was trained.
    """
    import torch

    from acestep.adapters.adapter_set import AdapterSet
    from acestep.pipeline.build import build_network
    from acestep.songs import AdapterUse
    from acestep.weights.open import open_checkpoint

    checkpoint = open_checkpoint(weights or _base(adapter))
    network = build_network(checkpoint, "cpu", torch.float32)
    AdapterSet(network.decoder).merge([AdapterUse(path=str(adapter), scale=scale)])
    tensors = {name: tensor.to(checkpoint.network[name].dtype) for name, tensor in network.state_dict().items()}
    return replace(checkpoint, name=f"{checkpoint.name} with {adapter}", network=tensors)


def write_adapter_file(adapter: Path, file: Path, layout: AdapterLayout, weights: str | None = None) -> Path:
    """Write ``adapter`` to ``file`` in ``layout``. Only the config of the base checkpoint is read, not its weights."""
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    from acestep.adapters import export_adapter
    from acestep.adapters.base import ADAPTER
    from acestep.adapters.read import linear_layers, read_adapter
    from acestep.pipeline.build import network_config
    from acestep.weights.open import open_checkpoint

    decoder = _decoder_without_memory(network_config(open_checkpoint(weights or _base(adapter))))
    loaded = read_adapter(adapter, linear_layers(decoder))
    inject_adapter_in_model(loaded.config, decoder, ADAPTER)
    set_peft_model_state_dict(decoder, dict(loaded.tensors), adapter_name=ADAPTER)
    return export_adapter(decoder, file, layout)


def _base(adapter: Path) -> str:
    from acestep.adapters import adapter_base
    from acestep.adapters.read import find_adapter

    return adapter_base(find_adapter(adapter).parent)


def _decoder_without_memory(config: AceStepConfig) -> nn.Module:
    """A DiT whose linear layers are expanded zeros, to inject an adapter into."""
    import torch
    from torch import nn

    from acestep.models.acestep import AceStep

    with torch.device("meta"):
        decoder = AceStep(config).decoder
    for layer in [part for part in decoder.modules() if isinstance(part, nn.Linear)]:
        layer.weight = nn.Parameter(torch.zeros(()).expand(layer.weight.shape), requires_grad=False)
    return decoder


def add_merge_and_export(commands: Any) -> None:
    command = add_command(commands, merge)
    _add_paths(command, "folder to write; must not exist")
    command.add_argument("--scale", type=float, default=1.0, help="of the adapter (default 1)")
    command.add_argument("--to", default="native", help="native, upstream or diffusers (default native)")
    command.add_argument("--dtype", help="float32, bfloat16 or float16 (default: that of the weights)")

    command = add_command(commands, export)
    _add_paths(command, "file to write, NAME.safetensors; must not exist")
    command.add_argument("--to", choices=("diffusers", "comfyui"), required=True, help="program that reads the file")


def _add_paths(command: argparse.ArgumentParser, target: str) -> None:
    command.add_argument("adapter", type=Path, help="run folder, adapter folder or file")
    command.add_argument("target", type=Path, help=target)
    command.add_argument("--weights", help="base checkpoint (default: the one named in the adapter's folder)")
