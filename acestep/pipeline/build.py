"""Checkpoints to built parts: every network is made on the meta device and then filled, so nothing is held twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import torch

from acestep import flow
from acestep.adapters import adapter_base, is_adapter
from acestep.conditioning.encode import Conditioner
from acestep.flow.sampler import Sampler
from acestep.models.acestep import AceStep, AceStepConfig, Padding
from acestep.models.autoencoder import Oobleck, OobleckConfig
from acestep.models.language import TextEncoder
from acestep.models.spectral import SpectralAutoencoder, SpectralConfig
from acestep.types import Autoencoder
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.native import is_native, native_base
from acestep.weights.open import find_folder, folder_hash, named_by, open_checkpoint
from acestep.weights.tensors import load_into
from acestep.weights.training import is_training_state, training_base

AUTOENCODERS = {"oobleck": (Oobleck, OobleckConfig), "spectral": (SpectralAutoencoder, SpectralConfig)}
Member = TypeVar("Member", bound=Enum)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def named_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The torch dtype of a name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: use one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def check_device(device: str) -> torch.device:
    """The torch device of a name, if it is there."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device}: not a device; use cpu, cuda or cuda:1") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={device}: torch finds no such GPU here; use device=cpu")
    return found


def choice(key: str, kind: type[Member], value: Member | str) -> Member:
    """The member of ``kind`` that ``value`` is or names."""
    try:
        return kind(value)
    except ValueError as error:
        raise ValueError(f"{key}={value}: use {' or '.join(member.value for member in kind)}") from error


def build_network(
    checkpoint: Checkpoint, device: torch.device | str, dtype: torch.dtype, padding: Padding | str | None = None
) -> AceStep:
    """The DiT with its condition encoder and tokenizer, in evaluation mode.

    ``padding=None`` is what the checkpoint says, or ``masked``. Differs from the release, which ignores masks: a song
    made alone is the same either way, one made in a batch is only so when masked.
    """
    padding = choice("padding", Padding, padding or checkpoint.network_config.get("padding", Padding.masked))
    config = replace(_network_config(checkpoint), padding=padding)
    with torch.device("meta"):
        network = AceStep(config)
    load_into(network, checkpoint.network, dtype, checkpoint.name)
    return network.to(device).eval()


def build_autoencoder(checkpoint: Checkpoint, device: torch.device | str, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder, frozen; the spectral one counts phases, and so stays in float32."""
    if checkpoint.autoencoder is None:
        raise ValueError(_without(checkpoint, "autoencoder", "vae"))
    if checkpoint.autoencoder_class not in AUTOENCODERS:
        raise ValueError(
            f"weights={checkpoint.name}: autoencoder class {checkpoint.autoencoder_class!r} is unknown; "
            f"need one of {', '.join(AUTOENCODERS)}"
        )
    module, config = AUTOENCODERS[checkpoint.autoencoder_class]
    dtype = torch.float32 if module is SpectralAutoencoder else dtype
    try:
        with torch.device("meta"):
            autoencoder = module(config(**checkpoint.autoencoder_config))
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"weights={checkpoint.name}: its config.json describes no autoencoder: {error}") from error
    load_into(autoencoder, checkpoint.autoencoder, dtype, f"{checkpoint.name} (autoencoder)")
    return autoencoder.to(device).eval().requires_grad_(False)


def swap_autoencoder(
    own: Autoencoder, checkpoint: Checkpoint, path_or_name: str | Path
) -> tuple[Autoencoder, Checkpoint]:
    """The autoencoder of the checkpoint ``path_or_name``, as ``own`` is placed, and ``checkpoint`` with it for its own.

    Raises:
        ValueError: it has other latents than ``own``, by their number, rate or the waveforms they stand for.
    """
    with named_by("autoencoder"):
        other = open_checkpoint(path_or_name)
        like = next(iter(own.state_dict().values()))
        autoencoder = build_autoencoder(other, like.device, like.dtype)
    for name in ("latent_channels", "hop", "sample_rate"):
        here, there = getattr(own, name), getattr(autoencoder, name)
        if here != there:
            raise ValueError(
                f"autoencoder={path_or_name}: its {name} is {there}, and that of these weights {here}; name one that "
                "was trained on the same latents"
            )
    parts = {name: getattr(other, name) for name in ("autoencoder_class", "autoencoder_config", "autoencoder")}
    return autoencoder, replace(checkpoint, **parts)


def load_autoencoder(weights: str | Path, device: str = "cpu") -> Autoencoder:
    """The autoencoder of the checkpoint that ``weights`` names, in the float32 that stored latents are made in."""
    check_device(device)
    return build_autoencoder(open_checkpoint(weights), device, torch.float32)


def build_conditioner(
    checkpoint: Checkpoint, config: AceStepConfig, device: torch.device | str, dtype: torch.dtype
) -> Conditioner:
    """The text encoder and the silence latents, for a network of ``config``."""
    if checkpoint.text_encoder is None:
        raise ValueError(_without(checkpoint, "text encoder", "Qwen3-Embedding-0.6B"))
    return Conditioner(
        text_encoder=TextEncoder(checkpoint.text_encoder, dtype).to(device),
        silence=checkpoint.silence.to(device, torch.float32),
        reference_frames=config.timbre_fix_frame,
        encode_padding=config.padding is Padding.upstream,
    )


def fingerprint(weights: str | Path) -> str:
    """SHA-256 of the checkpoint that ``weights`` names; that of what leans on a base covers the base too."""
    folder = find_folder(weights)
    base: str | Path | None
    if is_adapter(folder):
        base = adapter_base(folder)
    elif is_training_state(folder):
        base = training_base(folder)
    else:
        base = native_base(folder) if is_native(folder) else None
    if base is None:
        return folder_hash(folder)
    return hashlib.sha256(f"{folder_hash(folder)} {fingerprint(base)}".encode()).hexdigest()


def build_sampler(checkpoint: Checkpoint) -> Sampler:
    """The checkpoint's usual sampler: its ``sampler`` entry names classes of ``acestep.flow`` and their fields.

    What the entry leaves out is as the release has it: turbo's where the network's config says ``is_turbo``.
    """
    usual = Sampler.turbo() if _network_config(checkpoint).is_turbo else Sampler()
    try:
        parts = {
            name: spec if isinstance(spec, bool) else _built(spec, checkpoint.name)
            for name, spec in checkpoint.sampler.items()
        }
        return replace(usual, **parts)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"weights={checkpoint.name}: its config.json describes no sampler: {error}") from error


def _network_config(checkpoint: Checkpoint) -> AceStepConfig:
    try:
        return AceStepConfig.from_dict(checkpoint.network_config)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"weights={checkpoint.name}: its config.json describes no network: {error}") from error


def _without(checkpoint: Checkpoint, part: str, folder: str) -> str:
    return (
        f"weights={checkpoint.name}: comes without its {part}; put {folder}/ of ACE-Step/Ace-Step1.5 into the folder, "
        "or beside it"
    )


def _built(spec: Mapping[str, Any], source: str) -> Any:
    if not isinstance(spec, Mapping):
        raise TypeError(f"{spec!r} is no class with its fields")
    fields = dict(spec)
    name = fields.pop("class", None)
    if name not in flow.__all__:
        raise ValueError(f"weights={source}: sampler class {name!r} is unknown; need one of {', '.join(flow.__all__)}")
    try:
        return getattr(flow, name)(**fields)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"weights={source}: its config.json describes no sampler: {error}") from error
