"""The layout of diffusers' ``AceStepPipeline``: one folder per component, with tensor names of its own.

Published config keys, song durations and the default sampler, which diffusers does not store, are in ``acestep.json``
beside ``model_index.json``. In a folder without it, as diffusers writes it, the components' configs are read.
Tensor names: diffusers 0.42, ``transformer_ace_step.py`` and ``modeling_ace_step.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from acestep.files import read_json, write_json
from acestep.weights.checkpoint import SILENCE, Checkpoint, Lengths
from acestep.weights.tensors import RenamedTensors, TensorFiles, TensorLocation, open_tensors, save_tensors
from acestep.weights.text_encoder import split_text_encoder
from acestep.weights.upstream import VAE, VAE_STEM, read_vae, read_vae_config, write_vae

COMPONENTS = {
    "decoder.": "transformer",
    "encoder.": "condition_encoder",
    "tokenizer.": "audio_tokenizer",
    "detokenizer.": "audio_token_detokenizer",
}
"""Prefix of published tensor names, and the diffusers component with these tensors, without the prefix."""
NULL = "null_condition_emb"

_PAIRS = (
    (".q_proj.", ".to_q."),
    (".k_proj.", ".to_k."),
    (".v_proj.", ".to_v."),
    (".o_proj.", ".to_out.0."),
    (".q_norm.", ".norm_q."),
    (".k_norm.", ".norm_k."),
)
_CONVOLUTIONS = (("proj_in.1.", "proj_in_conv."), ("proj_out.1.", "proj_out_conv."))


INDEX = "model_index.json"
EXTRA = "acestep.json"
PIPELINE = "AceStepPipeline"
SILENCE_FRAMES = 15_000
"""Length of the silence latent in diffusers' condition encoder; a shorter one is tiled, as upstream does on use."""

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
"""Config fields of each component by their published names, besides ``_SIZES`` and ``_STACK``."""
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


def to_diffusers(name: str) -> tuple[str, str]:
    """The component of a published tensor name, and its name there."""
    if name == NULL:
        return "condition_encoder", NULL
    prefix = next(prefix for prefix in COMPONENTS if name.startswith(prefix))
    component, name = COMPONENTS[prefix], name.removeprefix(prefix)
    for published, theirs in _PAIRS:
        name = name.replace(published, theirs)
    for published, theirs in _CONVOLUTIONS:
        if component == "transformer" and name.startswith(published):
            name = theirs + name.removeprefix(published)
    return component, name


def from_diffusers(component: str, name: str) -> str:
    """The published name of the tensor ``name`` of a diffusers component."""
    if component == "condition_encoder" and name in (NULL, SILENCE):
        return name
    for published, theirs in _CONVOLUTIONS:
        if component == "transformer" and name.startswith(theirs):
            name = published + name.removeprefix(theirs)
    for published, theirs in _PAIRS:
        name = name.replace(theirs, published)
    return next(prefix for prefix, of_prefix in COMPONENTS.items() if of_prefix == component) + name


def is_diffusers(folder: Path) -> bool:
    """Whether ``folder`` holds a diffusers pipeline of this model."""
    index = folder / INDEX
    return index.is_file() and read_json(index).get("_class_name") == PIPELINE


def read_diffusers(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``."""
    extra = read_json(folder / EXTRA) if (folder / EXTRA).is_file() else {}
    locations: dict[str, TensorLocation] = {}
    for component in COMPONENTS.values():
        rename = partial(from_diffusers, component)
        locations |= open_tensors(folder / component, VAE_STEM, rename=rename).locations
    silence = locations.pop(SILENCE).mapped()
    has_vae = (folder / VAE).is_dir()
    return Checkpoint(
        name=str(folder),
        network_config=extra.get("network") or _published_config(folder),
        network=TensorFiles(locations),
        silence=silence[:, : extra.get("silence_frames", SILENCE_FRAMES)],
        autoencoder_class="oobleck",
        autoencoder_config=read_vae_config(folder / VAE) if has_vae else {},
        autoencoder=read_vae(folder / VAE) if has_vae else None,
        text_encoder=folder / "text_encoder" if (folder / "text_encoder").is_dir() else None,
        lengths=Lengths(**extra.get("lengths", {})),
        sampler=extra.get("sampler", {}),
    )


def write_diffusers(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``checkpoint`` to the empty ``folder``."""
    if checkpoint.autoencoder is None or checkpoint.text_encoder is None:
        raise ValueError(f"weights={checkpoint.name}: has no autoencoder or text encoder, and a pipeline needs both")
    configs = _component_configs(checkpoint.network_config)
    repeats = -(-SILENCE_FRAMES // checkpoint.silence.shape[1])
    tiled_silence = checkpoint.silence.repeat(1, repeats, 1)[:, :SILENCE_FRAMES]
    for component, names in _names_by_component(checkpoint.network).items():
        silence = {SILENCE: tiled_silence} if component == "condition_encoder" else {}
        tensors = RenamedTensors(checkpoint.network, names, silence)
        save_tensors(tensors, folder / component / f"{VAE_STEM}.safetensors", dtype)
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


def _published_config(folder: Path) -> dict[str, Any]:
    configs = {component: read_vae_config(folder / component) for component in COMPONENTS.values()}
    transformer, encoder = configs["transformer"], configs["condition_encoder"]
    published = {name: transformer[name] for name in (*_SIZES, *_STACK) if name in transformer}
    for component, names in _FIELDS.items():
        published |= {name: configs[component][name] for name in names if configs[component].get(name) is not None}
    if transformer.get("encoder_hidden_size") is not None:
        published |= {f"encoder_{name}": encoder[name] for name in _SIZES}
    return published


def _names_by_component(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """For each component, the published name of each of its tensors."""
    by_component: dict[str, dict[str, str]] = defaultdict(dict)
    for published in names:
        component, theirs = to_diffusers(published)
        by_component[component][theirs] = published
    return by_component
