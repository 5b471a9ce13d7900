"""Our own layout: one folder that holds all a song needs.

``config.json``, ``model.safetensors`` (published names), ``silence_latent.safetensors``,
``autoencoder/model.safetensors`` and ``text_encoder/`` (a Hugging Face folder).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from acestep.weights.checkpoint import Checkpoint, Lengths
from acestep.weights.tensors import open_tensors, read_json, save_tensors, write_json
from acestep.weights.text_encoder import copy_text_encoder

FORMAT = "acestep-native"


def is_native(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint of this layout."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("format") == FORMAT


def read_native(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``; tensors are read when asked for."""
    config = read_json(folder / "config.json")
    has_autoencoder, text_encoder = (folder / "autoencoder").is_dir(), folder / "text_encoder"
    try:
        return Checkpoint(
            name=str(folder),
            network_config=config["network"],
            network=open_tensors(folder),
            silence=open_tensors(folder, "silence_latent")["silence_latent"],
            autoencoder_class=config["autoencoder"]["class"],
            autoencoder_config=config["autoencoder"]["config"],
            autoencoder=open_tensors(folder / "autoencoder") if has_autoencoder else None,
            text_encoder=text_encoder if text_encoder.is_dir() else None,
            lengths=Lengths(**config["lengths"]),
            sampler=config.get("sampler", {}),
        )
    except KeyError as error:
        raise ValueError(f"{folder}: its config.json or silence_latent.safetensors has no {error}") from error


def write_native(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``checkpoint`` into the empty ``folder``."""
    save_tensors(checkpoint.network, folder / "model.safetensors", dtype)
    save_tensors({"silence_latent": checkpoint.silence}, folder / "silence_latent.safetensors", dtype)
    if checkpoint.autoencoder is not None:
        save_tensors(checkpoint.autoencoder, folder / "autoencoder" / "model.safetensors", dtype)
    if checkpoint.text_encoder is not None:
        copy_text_encoder(checkpoint.text_encoder, folder / "text_encoder")
    config = {
        "format": FORMAT,
        "network": dict(checkpoint.network_config),
        "lengths": asdict(checkpoint.lengths),
        "autoencoder": {"class": checkpoint.autoencoder_class, "config": dict(checkpoint.autoencoder_config)},
        "sampler": dict(checkpoint.sampler),
    }
    write_json(config, folder / "config.json")
