"""Adapters in folders: PEFT's own layout, as PEFT and diffusers read it, and the name of the base weights."""

from __future__ import annotations

import os
from pathlib import Path

from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from acestep.adapters.lora import ADAPTER
from acestep.files import read_json, replacing, write_json

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
BASE_FILE = "base.json"
CARD_FILE = "README.md"
PREFIX = "base_model.model."


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter."""
    return (folder / CONFIG_FILE).is_file() and (folder / TENSOR_FILE).is_file()


def adapter_base(folder: Path) -> str:
    """Name or path of the weights that the adapter in ``folder`` was trained on; paths are relative to ``folder``.

    Raises:
        ValueError: if they are not told, or lead back to the adapter, in one step or several.
    """
    base = place = _told_base(folder)
    passed = {folder.resolve()}
    while (under := _adapter_at(place)) is not None:
        if under in passed:
            raise ValueError(f"{folder / BASE_FILE}: leads back to itself; name the weights that it was trained on")
        passed.add(under)
        place = _told_base(under)
    return base


def _told_base(folder: Path) -> str:
    path = folder / BASE_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder}: has no {BASE_FILE}, so the adapter's base weights are unknown; write one: "
            '{"weights": "name or path"}'
        )
    base = read_json(path).get("weights")
    if not isinstance(base, str) or not base:
        raise ValueError(f'{path}: need {{"weights": "name or path"}} of what the adapter was trained on; write it')
    place = (folder / base).resolve()
    return str(place) if place.is_dir() else base


def _adapter_at(place: str) -> Path | None:
    """The adapter that a folder is, or a run folder holds."""
    folders = (Path(place).resolve(), Path(place).resolve() / "weights")
    return next((folder for folder in folders if is_adapter(folder)), None)


def save_adapter(module: nn.Module, folder: Path, base: str) -> Path:
    """Write the adapter inside ``module`` to ``folder``, aside and then renamed, replacing what is there.

    Args:
        module: a network that carries an adapter.
        folder: where to.
        base: shipped name or path of the weights that ``module`` had before.
    """
    folder = Path(folder)
    tensors = get_peft_model_state_dict(module, adapter_name=ADAPTER)
    reference = os.path.relpath(base, folder) if Path(base).is_dir() else base
    with replacing(folder) as aside:
        module.peft_config[ADAPTER].save_pretrained(aside)
        save_file(
            {PREFIX + name: value.detach().cpu().contiguous() for name, value in tensors.items()}, aside / TENSOR_FILE
        )
        write_json(aside / BASE_FILE, {"weights": reference})
        (aside / CARD_FILE).write_text(_card(module, reference), encoding="utf-8")
    return folder


def load_adapter(module: nn.Module, folder: Path) -> None:
    """Put the adapter in ``folder`` into ``module``. Every tensor must find its place, and every place its tensor."""
    config = read_config(folder)
    try:
        tensors = {name.removeprefix(PREFIX): value for name, value in load_file(folder / TENSOR_FILE).items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / TENSOR_FILE}: not a whole safetensors file ({error}); fetch it again") from error
    inject_adapter_in_model(config, module, ADAPTER)
    wanted = get_peft_model_state_dict(module, adapter_name=ADAPTER)
    for name in wanted.keys() | tensors.keys():
        here, there = wanted.get(name), tensors.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = [None if value is None else list(value.shape) for value in (there, here)]
            raise ValueError(
                f"{folder}: {name} is {shapes[0]} in the adapter and {shapes[1]} in the network; "
                "the adapter belongs to weights of another size"
            )
    set_peft_model_state_dict(module, tensors, adapter_name=ADAPTER)


def read_config(folder: Path) -> PeftConfig:
    """The settings of the adapter in ``folder``."""
    path = folder / CONFIG_FILE
    if not read_json(path).get("target_modules"):
        raise ValueError(f"{path}: has no target_modules, the layers that it changes; fetch or write it again")
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not as PEFT has it ({error}); fetch or write it again") from error


def _card(module: nn.Module, base: str) -> str:
    """What the folder holds, for who finds it."""
    settings = module.peft_config[ADAPTER]
    size = sum(value.numel() for value in get_peft_model_state_dict(module, adapter_name=ADAPTER).values())
    targets = ", ".join(sorted(settings.target_modules))
    return f"""---
library_name: peft
tags: [ace-step, music, {settings.peft_type.value.lower()}]
---

# {settings.peft_type.value} adapter of an ACE-Step v1.5 DiT

| | |
|---|---|
| base weights | `{base}` |
| layers | {targets} |
| parameters | {size:,} |

`Pipeline.from_pretrained("this folder")` of `acestep` plays it on its base weights; PEFT reads it as any other adapter
of the DiT. `adapter_config.json` holds its settings.
"""
