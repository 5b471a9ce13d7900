"""Checkpoints to modules. Networks are created on the meta device and then filled, so that no weight is held twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

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
from acestep.weights.lightning import base_weights, is_training_checkpoint
from acestep.weights.native import is_native, native_base
from acestep.weights.open import find_folder, folder_hash, named_in_errors, open_checkpoint
from acestep.weights.tensors import load_into

AUTOENCODERS = {"oobleck": (Oobleck, OobleckConfig), "spectral": (SpectralAutoencoder, SpectralConfig)}
Member = TypeVar("Member", bound=Enum)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class OpenedWeights:
    """The weights that a name stands for, opened once and handed on.

    Attributes:
        checkpoint: its network, autoencoder and text encoder.
        adapters: folders of adapters to load on top of it, in this order.
    """

    checkpoint: Checkpoint
    adapters: tuple[Path, ...] = ()

    @cached_property
    def config(self) -> AceStepConfig:
        """The network's config."""
        return network_config(self.checkpoint)


def open_weights(path_or_name: str | Path) -> OpenedWeights:
    """The checkpoint at ``path_or_name``; for an adapter, its base checkpoint and the adapter."""
    folder = find_folder(path_or_name)
    adapters: list[Path] = []
    while is_adapter(folder):
        adapters.insert(0, folder)
        path_or_name = adapter_base(folder)
        folder = find_folder(path_or_name)
    return OpenedWeights(open_checkpoint(path_or_name), tuple(adapters))


def network_config(checkpoint: Checkpoint) -> AceStepConfig:
    """The config of the checkpoint's network. Raises ``ValueError`` if it is invalid."""
    try:
        return AceStepConfig.from_dict(checkpoint.network_config)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"weights={checkpoint.name}: its config.json describes no network: {error}") from error


def named_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The torch dtype of a name. Raises ``ValueError`` if there is none."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: use one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def check_device(name: str) -> torch.device:
    """The torch device ``name``. Raises ``ValueError`` if it does not exist here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name}: not a device; use cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: torch finds no such GPU here; use device=cpu")
    return device


def parse_enum(key: str, kind: type[Member], value: Member | str) -> Member:
    """The member of ``kind`` with this value; ``key`` is the config key for the error message."""
    try:
        return kind(value)
    except ValueError as error:
        raise ValueError(f"{key}={value}: use {' or '.join(member.value for member in kind)}") from error


def build_network(
    checkpoint: Checkpoint,
    device: torch.device | str,
    dtype: torch.dtype,
    padding: Padding | str | None = None,
    config: AceStepConfig | None = None,
) -> AceStep:
    """The DiT with its condition encoder and tokenizer, in evaluation mode.

    Args:
        checkpoint: its weights.
        device: of the parameters.
        dtype: of the parameters.
        padding: ``None`` is that of the checkpoint, or ``masked``. ``upstream`` is the behaviour of the release, which
            ignores masks: songs then depend on the batch that they are generated in.
        config: of the network, if the caller has parsed it.
    """
    name = padding or checkpoint.network_config.get("padding", Padding.masked)
    config = replace(config or network_config(checkpoint), padding=parse_enum("padding", Padding, name))
    with torch.device("meta"):
        network = AceStep(config)
    load_into(network, checkpoint.network, dtype, checkpoint.name)
    return network.to(device).eval()


def build_autoencoder(checkpoint: Checkpoint, device: torch.device | str, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder, frozen; the spectral one is always in float32, which its phases need."""
    if checkpoint.autoencoder is None:
        raise ValueError(_missing_part(checkpoint, "autoencoder", "vae"))
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
    current: Autoencoder, checkpoint: Checkpoint, path_or_name: str | Path
) -> tuple[Autoencoder, Checkpoint]:
    """The autoencoder of the checkpoint ``path_or_name`` on the device of ``current``, and ``checkpoint`` with it.

    Raises:
        ValueError: its latent channels, hop or sample rate differ from those of ``current``.
    """
    with named_in_errors("autoencoder"):
        other = open_checkpoint(path_or_name)
        tensor = weight_of(current)
        autoencoder = build_autoencoder(other, tensor.device, tensor.dtype)
    for name in ("latent_channels", "hop", "sample_rate"):
        expected, actual = getattr(current, name), getattr(autoencoder, name)
        if expected != actual:
            raise ValueError(
                f"autoencoder={path_or_name}: its {name} is {actual}, and that of these weights {expected}; name one "
                "that was trained on the same latents"
            )
    parts = {name: getattr(other, name) for name in ("autoencoder_class", "autoencoder_config", "autoencoder")}
    return autoencoder, replace(checkpoint, **parts)


def weight_of(autoencoder: Autoencoder) -> Tensor:
    """A floating-point tensor of the autoencoder, which has its device and dtype."""
    if not isinstance(autoencoder, nn.Module):
        raise TypeError(f"{type(autoencoder).__name__}: need an nn.Module")
    return next(tensor for tensor in (*autoencoder.parameters(), *autoencoder.buffers()) if tensor.is_floating_point())


def load_autoencoder(weights: str | Path, device: str = "cpu") -> Autoencoder:
    """The autoencoder of the checkpoint ``weights``, in float32, as stored latents are computed."""
    check_device(device)
    return build_autoencoder(open_checkpoint(weights), device, torch.float32)


def build_conditioner(
    checkpoint: Checkpoint, config: AceStepConfig, device: torch.device | str, dtype: torch.dtype
) -> Conditioner:
    """The text encoder and the silence latents, for a network of ``config``."""
    if checkpoint.text_encoder is None:
        raise ValueError(_missing_part(checkpoint, "text encoder", "Qwen3-Embedding-0.6B"))
    return Conditioner(
        text_encoder=TextEncoder(checkpoint.text_encoder, dtype).to(device),
        silence=checkpoint.silence.to(device, torch.float32),
        reference_frames=config.timbre_fix_frame,
        encode_padding=config.padding is Padding.upstream,
    )


def weights_fingerprint(weights: str | Path) -> str:
    """SHA-256 of the files of the checkpoint ``weights``, and of its base checkpoint if it depends on one."""
    folder = find_folder(weights)
    base: str | Path | None
    if is_adapter(folder):
        base = adapter_base(folder)
    elif is_training_checkpoint(folder):
        base = base_weights(folder)
    else:
        base = native_base(folder) if is_native(folder) else None
    if base is None:
        return folder_hash(folder)
    return hashlib.sha256(f"{folder_hash(folder)} {weights_fingerprint(base)}".encode()).hexdigest()


def build_sampler(checkpoint: Checkpoint, config: AceStepConfig | None = None) -> Sampler:
    """The checkpoint's default sampler: its ``sampler`` entry names classes of ``acestep.flow`` and their fields.

    Parts without an entry are those of the release: of turbo if the network's ``config`` says ``is_turbo``.
    """
    release = Sampler.turbo() if (config or network_config(checkpoint)).is_turbo else Sampler()
    try:
        parts: dict[str, Any] = {
            name: spec if isinstance(spec, bool) else _sampler_part(spec, checkpoint.name)
            for name, spec in checkpoint.sampler.items()
        }
        return replace(release, **parts)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"weights={checkpoint.name}: its config.json describes no sampler: {error}") from error


def _missing_part(checkpoint: Checkpoint, part: str, folder: str) -> str:
    return (
        f"weights={checkpoint.name}: comes without its {part}; put {folder}/ of ACE-Step/Ace-Step1.5 into the folder, "
        "or beside it"
    )


def _sampler_part(spec: Mapping[str, Any], weights: str) -> Any:
    if not isinstance(spec, Mapping):
        raise TypeError(f"{spec!r} is no class with its fields")
    fields = dict(spec)
    name = fields.pop("class", None)
    if name not in flow.__all__:
        raise ValueError(f"weights={weights}: sampler class {name!r} is unknown; need one of {', '.join(flow.__all__)}")
    try:
        return getattr(flow, name)(**fields)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"weights={weights}: its config.json describes no sampler: {error}") from error
