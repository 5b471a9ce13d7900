"""The published layout: a DiT folder, with ``vae/`` and ``Qwen3-Embedding-0.6B/`` inside it or beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from acestep.files import atomic, read_json, write_json
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.hub import BUNDLE, fetch, is_fetched
from acestep.weights.tensors import TensorFiles, load_plain, open_tensors, save_tensors
from acestep.weights.text_encoder import copy_text_encoder

MODEL_TYPE = "acestep"
VAE = "vae"
VAE_STEM = "diffusion_pytorch_model"
TEXT_ENCODER = "Qwen3-Embedding-0.6B"
LANGUAGE_MODEL = "5Hz-lm"
"""Part of the folder name of every published language model."""
OWN_KEYS = ("padding",)
"""Config keys that the published configs do not have."""


def is_upstream(folder: Path) -> bool:
    """Whether ``folder`` is the DiT folder of a published checkpoint."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == MODEL_TYPE


def read_upstream(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``; autoencoder and text encoder may also be in its parent folder, or be missing."""
    vae = _part_folder(folder, VAE)
    return Checkpoint(
        name=str(folder),
        network_config=read_json(folder / "config.json"),
        network=open_tensors(folder),
        silence=read_silence(folder / "silence_latent.pt"),
        autoencoder_class="oobleck",
        autoencoder_config=read_vae_config(vae) if vae else {},
        autoencoder=read_vae(vae) if vae else None,
        text_encoder=_part_folder(folder, TEXT_ENCODER),
    )


def write_upstream(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``checkpoint`` to the empty ``folder``."""
    config = {key: value for key, value in checkpoint.network_config.items() if key not in OWN_KEYS}
    write_json(folder / "config.json", {"model_type": MODEL_TYPE} | config)
    save_tensors(checkpoint.network, folder / "model.safetensors", dtype)
    with atomic(folder / "silence_latent.pt") as aside:
        torch.save(checkpoint.silence.transpose(1, 2).contiguous(), aside)
    if checkpoint.autoencoder is not None:
        write_vae(checkpoint, folder / VAE, dtype)
    if checkpoint.text_encoder is not None:
        copy_text_encoder(checkpoint.text_encoder, folder / TEXT_ENCODER)


def read_silence(path: Path) -> Tensor:
    """Silence latents ``(1, T, C)`` from a file with one tensor ``(1, C, T)``; no pickled code runs."""
    silence = load_plain(path, path)
    if not isinstance(silence, Tensor) or silence.ndim != 3 or silence.shape[0] != 1:
        raise ValueError(f"{path}: need one tensor [1, channels, frames]; fetch it again")
    return silence.transpose(1, 2).contiguous()


def read_vae_config(folder: Path) -> dict[str, object]:
    """The config of a diffusers component, without diffusers' private keys, which start with an underscore."""
    return {key: value for key, value in read_json(folder / "config.json").items() if not key.startswith("_")}


def read_vae(folder: Path) -> TensorFiles:
    """The autoencoder's tensors by published names; files may have torch's newer names of weight norm."""

    def published(name: str) -> str:
        name = name.replace("parametrizations.weight.original0", "weight_g")
        return name.replace("parametrizations.weight.original1", "weight_v")

    return open_tensors(folder, VAE_STEM, rename=published)


def write_vae(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the autoencoder as diffusers' ``AutoencoderOobleck``."""
    assert checkpoint.autoencoder is not None
    if checkpoint.autoencoder_class != "oobleck":
        raise ValueError(
            f"weights={checkpoint.name}: its autoencoder is of class {checkpoint.autoencoder_class}, which only the "
            "native layout can hold; use --to native"
        )
    write_json(folder / "config.json", {"_class_name": "AutoencoderOobleck"} | dict(checkpoint.autoencoder_config))
    save_tensors(checkpoint.autoencoder, folder / f"{VAE_STEM}.safetensors", dtype)


def language_models(folder: Path) -> list[Path]:
    """The 5 Hz language models in ``folder`` and beside it, as in the bundle of all parts."""
    places = (folder, folder.resolve().parent)
    return sorted(path for place in places for path in place.glob(f"*{LANGUAGE_MODEL}*") if is_language_model(path))


def is_language_model(folder: Path) -> bool:
    """Whether ``folder`` holds a 5 Hz language model."""
    return LANGUAGE_MODEL in folder.name and (folder / "config.json").is_file()


def _part_folder(folder: Path, name: str) -> Path | None:
    """The folder of a part of the checkpoint in ``folder``; of a checkpoint in the Hub's cache, it is fetched too."""
    found = next((place / name for place in (folder, folder.resolve().parent) if (place / name).is_dir()), None)
    return fetch(f"{BUNDLE}/{name}") if found is None and is_fetched(folder) else found
