"""The layout of diffusers' ``AceStepPipeline``: one folder per component, its own tensor names.

What diffusers has no place for (published config keys, lengths, the usual sampler) goes into ``acestep.json`` beside
``model_index.json``; a folder that lacks it, as any that diffusers wrote, is read from the components' configs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acestep.files import read_json, write_json
from acestep.weights.checkpoint import Checkpoint, Lengths
from acestep.weights.keys import COMPONENTS, SILENCE, from_diffusers, to_diffusers
from acestep.weights.tensors import Renamed, TensorFiles, open_tensors, save_tensors
from acestep.weights.text_encoder import split_text_encoder
from acestep.weights.upstream import VAE, VAE_STEM, read_vae, read_vae_config, write_vae

INDEX = "model_index.json"
EXTRA = "acestep.json"
PIPELINE = "AceStepPipeline"
SILENCE_FRAMES = 15_000
"""Length of the buffer in diffusers' condition encoder; shorter silence is tiled to it, as upstream does on use."""

SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1, "shift": 1.0}

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
_STACK = (
    *("head_dim", "rope_theta", "attention_bias", "attention_dropout", "rms_norm_eps", "sliding_window"),
    "layer_types",
)
_FIELDS = {
    "transformer": (
        *("num_hidden_layers", "in_channels", "audio_acoustic_hidden_dim", "patch_size", "is_turbo", "model_version"),
        "encoder_hidden_size",
    ),
    "condition_encoder": (
        *("text_hidden_dim", "timbre_hidden_dim", "num_lyric_encoder_hidden_layers"),
        "num_timbre_encoder_hidden_layers",
    ),
    "audio_tokenizer": (
        *("audio_acoustic_hidden_dim", "pool_window_size", "fsq_dim", "fsq_input_levels", "fsq_input_num_quantizers"),
        "num_attention_pooler_hidden_layers",
    ),
    "audio_token_detokenizer": (
        *("audio_acoustic_hidden_dim", "pool_window_size", "num_attention_pooler_hidden_layers"),
    ),
}
"""Config fields that each component holds under their published names, beside the sizes of its layers."""
_CLASSES = {
    "transformer": ("diffusers", "AceStepTransformer1DModel"),
    "condition_encoder": ("ace_step", "AceStepConditionEncoder"),
    "audio_tokenizer": ("ace_step", "AceStepAudioTokenizer"),
    "audio_token_detokenizer": ("ace_step", "AceStepAudioTokenDetokenizer"),
    "vae": ("diffusers", "AutoencoderOobleck"),
    "scheduler": ("diffusers", SCHEDULER["_class_name"]),
    "text_encoder": ("transformers", "Qwen3Model"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
}


def is_diffusers(folder: Path) -> bool:
    """Whether ``folder`` holds a diffusers pipeline of this model."""
    index = folder / INDEX
    return index.is_file() and read_json(index).get("_class_name") == PIPELINE


def read_diffusers(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``."""
    extra = read_json(folder / EXTRA) if (folder / EXTRA).is_file() else {}
    tensors = TensorFiles()
    for component in COMPONENTS.values():
        rename = partial(from_diffusers, component)
        tensors |= open_tensors(folder / component, VAE_STEM, rename=rename)
    silence = tensors[SILENCE][:, : extra.get("silence_frames", SILENCE_FRAMES)]
    has_vae = (folder / VAE).is_dir()
    return Checkpoint(
        name=str(folder),
        network_config=extra.get("network") or _published(folder),
        network=tensors.without(SILENCE),
        silence=silence,
        autoencoder_class="oobleck",
        autoencoder_config=read_vae_config(folder / VAE) if has_vae else {},
        autoencoder=read_vae(folder / VAE) if has_vae else None,
        text_encoder=folder / "text_encoder" if (folder / "text_encoder").is_dir() else None,
        lengths=Lengths(**extra.get("lengths", {})),
        sampler=extra.get("sampler", {}),
    )


def write_diffusers(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``checkpoint`` into the empty ``folder``."""
    if checkpoint.autoencoder is None or checkpoint.text_encoder is None:
        raise ValueError(f"weights={checkpoint.name}: has no autoencoder or text encoder, and a pipeline needs both")
    configs = _component_configs(checkpoint.network_config)
    for component, names in _names_by_component(checkpoint.network).items():
        more = {SILENCE: _repeated(checkpoint.silence)} if component == "condition_encoder" else {}
        save_tensors(Renamed(checkpoint.network, names, more), folder / component / f"{VAE_STEM}.safetensors", dtype)
        write_json(folder / component / "config.json", {"_class_name": _CLASSES[component][1]} | configs[component])
    write_vae(checkpoint, folder / VAE, dtype)
    split_text_encoder(checkpoint.text_encoder, folder / "text_encoder", folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / INDEX, {"_class_name": PIPELINE} | {name: list(home) for name, home in _CLASSES.items()})
    extra = {
        "network": dict(checkpoint.network_config),
        "lengths": asdict(checkpoint.lengths),
        "sampler": dict(checkpoint.sampler),
        "silence_frames": checkpoint.silence.shape[1],
    }
    write_json(folder / EXTRA, extra)


def _component_configs(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    prefix = "" if config.get("encoder_hidden_size") is None else "encoder_"
    stack = {name: config[name] for name in _STACK if name in config}
    configs = {}
    for component, names in _FIELDS.items():
        here = "" if component == "transformer" else prefix
        sizes = {name: config[here + name] for name in _SIZES if here + name in config}
        configs[component] = stack | sizes | {name: config[name] for name in names if name in config}
    return configs


def _published(folder: Path) -> dict[str, Any]:
    configs = {component: read_vae_config(folder / component) for component in COMPONENTS.values()}
    transformer, encoder = configs["transformer"], configs["condition_encoder"]
    published = {name: transformer[name] for name in (*_SIZES, *_STACK) if name in transformer}
    for component, names in _FIELDS.items():
        published |= {name: configs[component][name] for name in names if configs[component].get(name) is not None}
    if transformer.get("encoder_hidden_size") is not None:
        published |= {f"encoder_{name}": encoder[name] for name in _SIZES}
    return published


def _names_by_component(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each component, its names and the published name of each."""
    by_component: dict[str, dict[str, str]] = defaultdict(dict)
    for published in names:
        component, theirs = to_diffusers(published)
        by_component[component][theirs] = published
    return by_component


def _repeated(silence: Tensor) -> Tensor:
    return silence.repeat(1, -(-SILENCE_FRAMES // silence.shape[1]), 1)[:, :SILENCE_FRAMES]
