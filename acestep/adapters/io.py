"""Adapter folders in PEFT's layout, which PEFT and diffusers read, with the name of the base weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acestep.adapters.base import ADAPTER, peft_configs
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
        ValueError: they are not named, or are in turn an adapter of this one.
    """
    base = current = _read_base(folder)
    visited = {folder.resolve()}
    while (nested := _adapter_at(current)) is not None:
        if nested in visited:
            raise ValueError(f"{folder / BASE_FILE}: leads back to itself; name the weights that it was trained on")
        visited.add(nested)
        current = _read_base(nested)
    return base


def _read_base(folder: Path) -> str:
    path = folder / BASE_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder}: has no {BASE_FILE}, so the adapter's base weights are unknown; write one: "
            '{"weights": "name or path"}'
        )
    base = read_json(path).get("weights")
    if not isinstance(base, str) or not base:
        raise ValueError(f'{path}: need {{"weights": "name or path"}} of what the adapter was trained on; write it')
    relative = (folder / base).resolve()
    return str(relative) if relative.is_dir() else base


def _adapter_at(path: str) -> Path | None:
    """The adapter folder at ``path``, an adapter or a run folder; ``None`` if there is none."""
    folders = (Path(path).resolve(), Path(path).resolve() / "weights")
    return next((folder for folder in folders if is_adapter(folder)), None)


def save_adapter(module: nn.Module, folder: Path, base: str) -> Path:
    """Write the adapter in ``module`` to ``folder`` atomically, replacing what is there.

    Args:
        module: a network with an adapter.
        folder: the adapter's folder.
        base: name or path of the base weights.
    """
    folder = Path(folder)
    tensors = get_peft_model_state_dict(module, adapter_name=ADAPTER)
    reference = os.path.relpath(base, folder) if Path(base).is_dir() else base
    with replacing(folder) as temporary:
        peft_configs(module)[ADAPTER].save_pretrained(temporary)
        save_file(
            {PREFIX + name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            temporary / TENSOR_FILE,
        )
        write_json(temporary / BASE_FILE, {"weights": reference})
        (temporary / CARD_FILE).write_text(_adapter_card(module, reference), encoding="utf-8")
    return folder


def load_adapter(module: nn.Module, folder: Path) -> None:
    """Insert the adapter in ``folder`` into ``module``.

    Raises:
        ValueError: the files are broken, or the tensors do not fit the network.
    """
    config = read_config(folder)
    try:
        tensors = {name.removeprefix(PREFIX): value for name, value in load_file(folder / TENSOR_FILE).items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / TENSOR_FILE}: not a whole safetensors file ({error}); fetch it again") from error
    inject_adapter_in_model(config, module, ADAPTER)
    set_tensors(module, tensors, ADAPTER, str(folder))


def set_tensors(module: nn.Module, tensors: Mapping[str, Tensor], name: str, source: str) -> None:
    """Set the parameters of the adapter ``name`` in ``module``; ``source`` is for the message.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    expected = get_peft_model_state_dict(module, adapter_name=name)
    for key in sorted(expected.keys() | tensors.keys()):
        shapes = [None if value is None else list(value.shape) for value in (tensors.get(key), expected.get(key))]
        if None in shapes or shapes[0] != shapes[1]:
            raise ValueError(
                f"{source}: {key} is {shapes[0]} in the adapter and {shapes[1]} in the network; "
                "the adapter belongs to weights of another size"
            )
    set_peft_model_state_dict(module, dict(tensors), adapter_name=name)


def read_config(folder: Path) -> PeftConfig:
    """The PEFT config of the adapter in ``folder``; raises ``ValueError`` if it is broken."""
    path = folder / CONFIG_FILE
    if not read_json(path).get("target_modules"):
        raise ValueError(f"{path}: has no target_modules, the layers that it changes; fetch or write it again")
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not as PEFT has it ({error}); fetch or write it again") from error


def _adapter_card(module: nn.Module, base: str) -> str:
    """The model card."""
    settings = peft_configs(module)[ADAPTER]
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

`Pipeline.from_pretrained("this folder")` of `acestep` generates with it on its base weights; PEFT loads it as any
other adapter of the DiT. `adapter_config.json` is its config.
"""
