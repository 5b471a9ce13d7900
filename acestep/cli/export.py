"""Adapters on their way to other programs: made part of a whole checkpoint, or one file under their names."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from acestep.adapters import AdapterLayout
    from acestep.models.acestep import AceStepConfig
    from acestep.weights.checkpoint import Checkpoint


def merged(adapter: Path, weights: str | None = None, scale: float = 1.0) -> Checkpoint:
    """The checkpoint under ``adapter`` with the adapter in its weights, in the types that it is stored in.

    Args:
        adapter: a file or folder of any known layout, or a run folder.
        weights: what it was trained on; ``None`` is what its folder says.
        scale: how much of it; 1 as it was trained.
    """
    import torch

    from acestep.adapters.bank import Bank
    from acestep.pipeline.build import build_network
    from acestep.songs.song import AdapterUse
    from acestep.weights.open import open_checkpoint

    checkpoint = open_checkpoint(weights or _base(adapter))
    network = build_network(checkpoint, "cpu", torch.float32)
    Bank(network.decoder).merge([AdapterUse(path=str(adapter), scale=scale)])
    stored = {name: tensor.to(checkpoint.network[name].dtype) for name, tensor in network.state_dict().items()}
    return replace(checkpoint, name=f"{checkpoint.name} with {adapter}", network=stored)


def exported(adapter: Path, file: Path, layout: AdapterLayout, weights: str | None = None) -> Path:
    """Write ``adapter`` to ``file`` as ``layout`` has it. Of the weights under it, only the sizes are read."""
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    from acestep.adapters import export_adapter
    from acestep.adapters.lora import ADAPTER
    from acestep.adapters.read import linear_layers, read_adapter
    from acestep.models.acestep import AceStepConfig
    from acestep.weights.open import open_checkpoint

    decoder = _hollow(AceStepConfig.from_dict(open_checkpoint(weights or _base(adapter)).network_config))
    found = read_adapter(adapter, linear_layers(decoder))
    inject_adapter_in_model(found.config, decoder, ADAPTER)
    set_peft_model_state_dict(decoder, dict(found.tensors), adapter_name=ADAPTER)
    return export_adapter(decoder, file, layout)


def _base(adapter: Path) -> str:
    from acestep.adapters import adapter_base
    from acestep.adapters.read import find_adapter

    return adapter_base(find_adapter(adapter).parent)


def _hollow(config: AceStepConfig) -> nn.Module:
    """A DiT of ``config`` whose linear layers are zeros that take no memory: a place for an adapter."""
    import torch
    from torch import nn

    from acestep.models.acestep import AceStep

    with torch.device("meta"):
        decoder = AceStep(config).decoder
    for layer in [part for part in decoder.modules() if isinstance(part, nn.Linear)]:
        layer.weight = nn.Parameter(torch.zeros(()).expand(layer.weight.shape), requires_grad=False)
    return decoder


def merge(options: argparse.Namespace, tell: Callable[[object], None]) -> int:
    """Write a whole checkpoint."""
    from acestep.pipeline.build import named_dtype
    from acestep.weights.save import save_checkpoint

    if options.target.exists():
        raise ValueError(f"target={options.target}: exists; name a new folder")
    dtype = named_dtype(options.dtype) if options.dtype else None
    tell(save_checkpoint(merged(options.adapter, options.weights, options.scale), options.target, options.to, dtype))
    return 0


def export(options: argparse.Namespace, tell: Callable[[object], None]) -> int:
    """Write one file."""
    from acestep.adapters import AdapterLayout

    if options.target.exists():
        raise ValueError(f"target={options.target}: exists; name a new file")
    tell(exported(options.adapter, options.target, AdapterLayout(options.to), options.weights))
    return 0


def release_commands(commands: Any, tell: Callable[[object], None]) -> None:
    """Add ``merge`` and ``export`` to a parser's commands; ``tell`` says where the result is."""
    command = commands.add_parser(
        "merge",
        help="make an adapter part of its weights: a whole checkpoint",
        description="Add an adapter to the weights that it was trained on and write a whole checkpoint. Known are run "
        "folders, PEFT folders, and the LoRA, DoRA and LoKr files of other trainers.",
    )
    _places(command, "folder to write; must not be there")
    command.add_argument("--scale", type=float, default=1.0, help="how much of the adapter (default 1)")
    command.add_argument("--to", default="native", help="native, upstream or diffusers (default native)")
    command.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as the weights are)")
    command.set_defaults(command=partial(merge, tell=tell))

    command = commands.add_parser(
        "export",
        help="write an adapter as one file for diffusers or ComfyUI",
        description="Write an adapter as one safetensors file, for diffusers (LoRA alone) or ComfyUI (LoRA, DoRA, "
        "LoKr, LoHa). What a program cannot read is refused; merge it instead.",
    )
    _places(command, "file to write, NAME.safetensors; must not be there")
    command.add_argument("--to", choices=("diffusers", "comfyui"), required=True, help="who is to read it")
    command.set_defaults(command=partial(export, tell=tell))


def _places(command: argparse.ArgumentParser, target: str) -> None:
    command.add_argument("adapter", type=Path, help="run folder, adapter folder or file")
    command.add_argument("target", type=Path, help=target)
    command.add_argument("--weights", help="what it was trained on (default: what its folder says)")
