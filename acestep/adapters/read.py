"""Reads adapters of other trainers and converts them to PEFT's names; others are refused with the reason.

Supported are PEFT folders (upstream, Side-Step, our own), and single files of LoRA or DoRA tensors with the names of
ComfyUI, diffusers, ai-toolkit, SimpleTuner and kohya, or of LoKr tensors with those of LyCORIS. A file's layout is
inferred from its tensors' names. Pickled files are never opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoKrConfig, LoraConfig, PeftConfig
from peft.tuners.lokr.layer import factorization
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from acestep.adapters.io import CONFIG_FILE, read_config
from acestep.files import read_json

FILES = ("adapter_model.safetensors", "lokr_weights.safetensors", "pytorch_lora_weights.safetensors")
FOLDERS = ("adapter", "weights")
PICKLED = {".bin", ".ckpt", ".pt", ".pth"}
PREFIXES = ("base_model.", "model.", "diffusion_model.", "transformer.", "decoder.")
FLAT_PREFIXES = ("lycoris_", "lora_unet_", "lora_transformer_", "lora_", "diffusion_model_", "decoder_")
DIFFUSERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "o_proj", "to_out": "o_proj"}
PARTS = {
    "lora_A": "A", "lora_down": "A", "lora.down": "A", "lora_B": "B", "lora_up": "B", "lora.up": "B",
    "alpha": "alpha", "dora_scale": "magnitude", "lora_magnitude_vector": "magnitude",
    "lokr_w1": "w1", "lokr_w2": "w2", "lokr_w2_a": "w2_a", "lokr_w2_b": "w2_b",
}  # fmt: skip

_KEY = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_[AB]|lora_down|lora_up|lora\.down|lora\.up|alpha|dora_scale|lora_magnitude_vector"
    r"|lok?h?[ra]_\w+|hada_\w+|diff(?:_b)?|oft_\w+|scalar)(?:\.default)?(?:\.weight)?"
)

Modules = Mapping[str, nn.Linear]
Parts = dict[str, Tensor]


@dataclass(frozen=True)
class LoadedAdapter:
    """A PEFT config and the tensors with PEFT's names, without a prefix."""

    config: PeftConfig
    tensors: Mapping[str, Tensor]


def read_adapter(path: Path, modules: Modules) -> LoadedAdapter:
    """The adapter in a file or folder, for a network with the linear layers ``modules`` by name.

    Raises:
        ValueError: the file is broken, does not fit the network, or has tensors of an unsupported kind.
    """
    file = find_adapter(path)
    tensors, metadata = _read_tensors(file)
    settings = file.with_name(CONFIG_FILE)
    config = read_json(settings) if settings.is_file() else {}
    if config.get("peft_type") not in (None, "LORA"):
        return LoadedAdapter(read_config(file.parent), {_strip(name): tensor for name, tensor in tensors.items()})
    grouped = _grouped(tensors, modules, path)
    kinds = {"lokr" if "w1" in parts else "lora" for parts in grouped.values()}
    if len(kinds) > 1:
        raise ValueError(f"adapters={path}: mixes LoRA and LoKr tensors; export them apart")
    return (_lokr if kinds == {"lokr"} else _lora)(grouped, modules, path, config or metadata)


def find_adapter(path: Path) -> Path:
    """The safetensors file of ``path``: a file, an adapter's folder or a run folder."""
    if path.suffix in PICKLED:
        raise ValueError(f"adapters={path}: pickled files can run code and are not read; export it as .safetensors")
    if path.is_file():
        return path
    for folder in (path, *(path / name for name in FOLDERS)):
        files = [folder / name for name in FILES if (folder / name).is_file()]
        files = files or sorted(folder.glob("*.safetensors"))
        if len(files) == 1:
            return files[0]
        if files:
            raise ValueError(f"adapters={path}: holds several adapters, such as {files[1].name}; name the file")
    raise ValueError(f"adapters={path}: no adapter there; name a .safetensors file or the folder that holds it")


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of ``module`` without PEFT's own, by their names before adapters were inserted."""
    linears = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    base = {re.sub(r"(?:\.base_layer)+$", "", name): part for name, part in linears.items()}
    return {name: part for name, part in base.items() if not re.search(r"\.(?:lora_[AB]|lokr_\w+|hada_\w+)\.", name)}


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of ``file``, and LyCORIS' settings from its metadata."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = (opened.metadata() or {}).get("lokr_config", "{}")
            return {name: opened.get_tensor(name) for name in opened.keys()}, json.loads(metadata)  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"adapters={file}: not a whole safetensors file ({error})") from error


def _grouped(tensors: Mapping[str, Tensor], modules: Modules, path: Path) -> dict[str, Parts]:
    """The tensors by layer and by part (see ``PARTS``)."""
    flat = {name.replace(".", "_"): name for name in modules}
    grouped: dict[str, Parts] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        part = PARTS.get(match["part"]) if match else None
        if not match or part is None:
            kind = match["part"] if match else key
            raise ValueError(
                f"adapters={path}: {kind} is no tensor of a LoRA, DoRA or two-factor LoKr; merge it instead"
            )
        module = _resolve_module(match["module"], modules, flat)
        if module is None:
            raise ValueError(f"adapters={path}: changes {match['module']}, which is no linear layer of this network")
        if not tensor.isfinite().all():
            raise ValueError(f"adapters={path}: {key} holds numbers that are not finite; train or fetch it again")
        grouped.setdefault(module, {})[part] = tensor.float()
    if not grouped:
        raise ValueError(f"adapters={path}: holds no tensor")
    return grouped


def _strip(name: str) -> str:
    """``name`` without the trainers' prefixes."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _resolve_module(name: str, modules: Modules, flat: Mapping[str, str]) -> str | None:
    name = _strip(name)
    for source, target in DIFFUSERS.items():
        if name.endswith(f".{source}"):
            name = f"{name.removesuffix(source)}{target}"
            break
    if name in modules:
        return name
    while prefix := next((prefix for prefix in FLAT_PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return flat.get(name)


def _lora(grouped: Mapping[str, Parts], modules: Modules, path: Path, settings: Mapping[str, Any]) -> LoadedAdapter:
    """LoRA or DoRA; each layer's scale is multiplied into its ``B``."""
    tensors, ranks = {}, {}
    for module, parts in grouped.items():
        if not {"A", "B"} <= parts.keys():
            raise ValueError(f"adapters={path}: {module} has only one half of its product; fetch it again")
        a, b, layer = parts["A"], parts["B"], modules[module]
        if (a.shape[1], b.shape[0], a.shape[0]) != (layer.in_features, layer.out_features, b.shape[1]):
            raise ValueError(
                f"adapters={path}: {module} is {b.shape[0]} x {a.shape[1]} in the adapter, {layer.out_features} x "
                f"{layer.in_features} in the network; it belongs to weights of another size"
            )
        ranks[module] = a.shape[0]
        tensors[f"{module}.lora_A.weight"] = a
        tensors[f"{module}.lora_B.weight"] = b * _lora_scale(module, parts, settings)
        if "magnitude" in parts:
            tensors[f"{module}.lora_magnitude_vector"] = parts["magnitude"].flatten()
    dora = {"magnitude" in parts for parts in grouped.values()}
    if len(dora) > 1:
        raise ValueError(f"adapters={path}: only some layers have magnitudes; export it again")
    rank = max(ranks.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(ranks),
        rank_pattern=ranks,
        alpha_pattern=ranks,
        use_dora=dora.pop(),
    )
    return LoadedAdapter(config, tensors)


def _lora_scale(module: str, parts: Parts, settings: Mapping[str, Any]) -> float:
    """The factor on ``B @ A``, from the layer's alpha, else from the folder's settings, else 1."""
    rank = parts["A"].shape[0]
    alpha = parts["alpha"].item() if "alpha" in parts else _by_pattern(settings, module, rank)
    return alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank


def _by_pattern(settings: Mapping[str, Any], module: str, rank: int) -> float:
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(alpha)
    return float(settings.get("lora_alpha", rank))


def _lokr(grouped: Mapping[str, Parts], modules: Modules, path: Path, settings: Mapping[str, Any]) -> LoadedAdapter:
    """LoKr; each layer's scale is multiplied into its first factor."""
    tensors, ranks = {}, {}
    for module, parts in grouped.items():
        if "magnitude" in parts:
            raise ValueError(
                f"adapters={path}: {module} is a LoKr with magnitudes, which PEFT does not support; merge it instead"
            )
        if "w1" not in parts or not ("w2" in parts or {"w2_a", "w2_b"} <= parts.keys()):
            raise ValueError(f"adapters={path}: {module} lacks a factor; fetch it again")
        second = parts["w2"] if "w2" in parts else parts["w2_a"] @ parts["w2_b"]
        rank = parts["w2_a"].shape[1] if "w2_a" in parts else max(second.shape)
        trained = parts["w2_a"].shape[1] if "w2_a" in parts else settings.get("linear_dim")
        alpha = parts["alpha"].item() if "alpha" in parts else None
        ranks[module] = rank
        tensors[f"{module}.lokr_w1"] = parts["w1"] * (alpha / trained if alpha and trained else 1.0)
        tensors |= {f"{module}.lokr_{part}": parts[part] for part in ("w2", "w2_a", "w2_b") if part in parts}
    factor = _decompose_factor(grouped, modules, path)
    rank = max(ranks.values())
    config = LoKrConfig(
        r=rank, alpha=rank, target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks, decompose_factor=factor
    )
    return LoadedAdapter(config, tensors)


def _decompose_factor(grouped: Mapping[str, Parts], modules: Modules, path: Path) -> int:
    """PEFT's ``decompose_factor`` that gives the shapes of all layers' first factors."""
    shapes = [
        ((modules[module].out_features, modules[module].in_features), tuple(parts["w1"].shape))
        for module, parts in grouped.items()
    ]
    largest = max(max(shape) for _, shape in shapes)
    for factor in (-1, *range(1, largest + 1)):
        if all(tuple(factorization(size, factor)[0] for size in sizes) == shape for sizes, shape in shapes):
            return factor
    raise ValueError(f"adapters={path}: its factors do not divide this network's layers; it belongs to another size")
