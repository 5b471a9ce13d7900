"""The published layout: a DiT folder, and ``vae/`` and ``Qwen3-Embedding-0.6B/`` inside it or beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from acestep.files import atomic, read_json, write_json
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.hub import BUNDLE, fetch, is_fetched
from acestep.weights.keys import autoencoder_name
from acestep.weights.tensors import TensorFiles, load_plain, open_tensors, save_tensors
from acestep.weights.text_encoder import copy_text_encoder

MODEL_TYPE = "acestep"
VAE = "vae"
VAE_STEM = "diffusion_pytorch_model"
TEXT_ENCODER = "Qwen3-Embedding-0.6B"
LANGUAGE_MODEL = "5Hz-lm"
"""In the name of every published planner's folder."""
OURS = ("padding",)
"""Keys of our configs that the published ones do not have."""
HIDDEN = "_"
"""Keys that diffusers writes for itself start with this."""


def is_upstream(folder: Path) -> bool:
    """Whether ``folder`` holds a published checkpoint's DiT folder."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == MODEL_TYPE


def read_upstream(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``; autoencoder and text encoder stay out where neither it nor its parent has them."""
    vae, text_encoder = _part(folder, VAE), _part(folder, TEXT_ENCODER)
    return Checkpoint(
        name=str(folder),
        network_config=read_json(folder / "config.json"),
        network=open_tensors(folder),
        silence=read_silence(folder / "silence_latent.pt"),
        autoencoder_class="oobleck",
        autoencoder_config=read_vae_config(vae) if vae else {},
        autoencoder=read_vae(vae) if vae else None,
        text_encoder=text_encoder,
    )


def write_upstream(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``checkpoint`` into the empty ``folder``."""
    config = {key: value for key, value in checkpoint.network_config.items() if key not in OURS}
    write_json(folder / "config.json", {"model_type": MODEL_TYPE} | config)
    save_tensors(checkpoint.network, folder / "model.safetensors", dtype)
    write_silence(checkpoint.silence, folder / "silence_latent.pt")
    if checkpoint.autoencoder is not None:
        write_vae(checkpoint, folder / VAE, dtype)
    if checkpoint.text_encoder is not None:
        copy_text_encoder(checkpoint.text_encoder, folder / TEXT_ENCODER)


def read_silence(path: Path) -> Tensor:
    """Silence latents ``(1, T, C)`` from a file that holds them channels first; no pickled code runs."""
    silence = load_plain(path, path)
    if not isinstance(silence, Tensor) or silence.ndim != 3 or silence.shape[0] != 1:
        raise ValueError(f"{path}: need one tensor [1, channels, frames]; fetch it again")
    return silence.transpose(1, 2).contiguous()


def write_silence(silence: Tensor, path: Path) -> None:
    """Write silence latents as published: one tensor, channels first."""
    with atomic(path) as aside:
        torch.save(silence.transpose(1, 2).contiguous(), aside)


def read_vae_config(folder: Path) -> dict[str, object]:
    """Fields of the autoencoder's config, without what diffusers notes for itself."""
    return {key: value for key, value in read_json(folder / "config.json").items() if not key.startswith(HIDDEN)}


def read_vae(folder: Path) -> TensorFiles:
    """The autoencoder's tensors under their published names."""
    return open_tensors(folder, VAE_STEM, rename=autoencoder_name)


def write_vae(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the autoencoder as diffusers' ``AutoencoderOobleck`` has it."""
    assert checkpoint.autoencoder is not None
    if checkpoint.autoencoder_class != "oobleck":
        raise ValueError(
            f"weights={checkpoint.name}: its autoencoder is of class {checkpoint.autoencoder_class}, which only the "
            "native layout can hold; use --to native"
        )
    write_json(folder / "config.json", {"_class_name": "AutoencoderOobleck"} | dict(checkpoint.autoencoder_config))
    save_tensors(checkpoint.autoencoder, folder / f"{VAE_STEM}.safetensors", dtype)


def language_models(folder: Path) -> list[Path]:
    """The 5 Hz language models in ``folder`` and beside it, as the bundle of all parts has them."""
    places = (folder, folder.resolve().parent)
    return sorted(path for place in places for path in place.glob(f"*{LANGUAGE_MODEL}*") if is_language_model(path))


def is_language_model(folder: Path) -> bool:
    """Whether ``folder`` holds a 5 Hz language model."""
    return LANGUAGE_MODEL in folder.name and (folder / "config.json").is_file()


def _part(folder: Path, name: str) -> Path | None:
    """Where a part of the checkpoint in ``folder`` is; a fetched one's is fetched too."""
    found = next((place / name for place in (folder, folder.resolve().parent) if (place / name).is_dir()), None)
    return fetch(f"{BUNDLE}/{name}") if found is None and is_fetched(folder) else found
