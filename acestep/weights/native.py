"""This package's own layout: one folder with all parts of a checkpoint.

``config.json``, ``model.safetensors`` (published names), ``silence_latent.safetensors``,
``autoencoder/model.safetensors`` and ``text_encoder/`` (a Hugging Face folder). If ``config.json`` has a ``base``, the
name of another native checkpoint beside it, tensors and parts that the folder lacks are taken from the base.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from acestep.files import read_json, write_json
from acestep.weights.checkpoint import SILENCE, Checkpoint, Lengths
from acestep.weights.tensors import open_tensors, save_tensors
from acestep.weights.text_encoder import copy_text_encoder

FORMAT = "acestep-native"


def is_native(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint of this layout."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("format") == FORMAT


def read_native(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``.

    Raises:
        ValueError: a file is missing or broken, or the config has a wrong form.
    """
    config = read_json(folder / "config.json")
    base_path = native_base(folder)
    base = read_native(base_path) if base_path else None
    has_autoencoder, text_encoder = (folder / "autoencoder").is_dir(), folder / "text_encoder"
    network: Mapping[str, Tensor] = open_tensors(folder)
    try:
        checkpoint = Checkpoint(
            name=str(folder),
            network_config=config["network"],
            network=network if base is None else ChainMap(network, base.network),  # type: ignore[arg-type]  # only read
            silence=open_tensors(folder, SILENCE)[SILENCE] if base is None else base.silence,
            autoencoder_class=config["autoencoder"]["class"],
            autoencoder_config=config["autoencoder"]["config"],
            autoencoder=open_tensors(folder / "autoencoder") if has_autoencoder else None,
            text_encoder=text_encoder if text_encoder.is_dir() else None,
            lengths=Lengths(**config["lengths"]),
            sampler=config.get("sampler", {}),
        )
    except KeyError as error:
        raise ValueError(f"{folder}: its config.json or silence_latent.safetensors has no {error}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder}/config.json: not the config of a checkpoint: {error}") from error
    for key in ("network_config", "autoencoder_config", "sampler"):
        if not isinstance(getattr(checkpoint, key), dict):
            raise ValueError(f"{folder}/config.json: its {key.replace('_', ' ')} is no object; fetch or write it again")
    if base is None:
        return checkpoint
    return replace(checkpoint, autoencoder=base.autoencoder, text_encoder=base.text_encoder)


def native_base(folder: Path) -> Path | None:
    """The folder of the base of the native checkpoint in ``folder``, if it has one."""
    config = read_json(folder / "config.json")
    return _base_folder(folder, config["base"]) if "base" in config else None


def _base_folder(folder: Path, name: str) -> Path:
    base = folder.resolve().parent / name
    if Path(name).name != name or not is_native(base) or "base" in read_json(base / "config.json"):
        raise ValueError(
            f"{folder}: its config.json names the base {name!r}; put that native checkpoint, one without a base of its "
            "own, beside it"
        )
    return base


def write_native(
    checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None, base: Path | None = None
) -> None:
    """Write ``checkpoint`` to the empty ``folder``; with a ``base`` beside it, only the tensors that differ.

    Raises:
        ValueError: the base is elsewhere, or its silence latent or autoencoder differs from ``checkpoint``'s.
    """
    config = {
        "format": FORMAT,
        "network": dict(checkpoint.network_config),
        "lengths": asdict(checkpoint.lengths),
        "autoencoder": {"class": checkpoint.autoencoder_class, "config": dict(checkpoint.autoencoder_config)},
        "sampler": dict(checkpoint.sampler),
    }
    network: Mapping[str, Tensor] = checkpoint.network
    if base is not None:
        if base.resolve().parent != folder.resolve().parent:
            raise ValueError(
                f"base={base}: need a folder beside the one that is written: put that native checkpoint there"
            )
        stored = read_native(_base_folder(folder, base.name))
        silence = {SILENCE: checkpoint.silence}, {SILENCE: stored.silence}
        autoencoders = checkpoint.autoencoder or {}, stored.autoencoder or {}
        for part, (ours, theirs) in (("silence latent", silence), ("autoencoder", autoencoders)):
            if ours.keys() != theirs.keys() or _differing(ours, theirs, dtype):
                raise ValueError(
                    f"base={stored.name}: its {part} differs from that of {checkpoint.name}; write without a base"
                )
        network = {name: network[name] for name in _differing(network, stored.network, dtype)}
        config["base"] = base.name
    save_tensors(network, folder / "model.safetensors", dtype)
    write_json(folder / "config.json", config)
    if base is not None:
        return
    save_tensors({SILENCE: checkpoint.silence}, folder / f"{SILENCE}.safetensors", dtype)
    if checkpoint.autoencoder is not None:
        save_tensors(checkpoint.autoencoder, folder / "autoencoder" / "model.safetensors", dtype)
    if checkpoint.text_encoder is not None:
        copy_text_encoder(checkpoint.text_encoder, folder / "text_encoder")


def _differing(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], dtype: torch.dtype | None) -> list[str]:
    """Names of the ``tensors`` that are stored in ``dtype`` with other numbers than in ``base``."""

    def is_equal(name: str) -> bool:
        stored = tensors[name].to("cpu", dtype or tensors[name].dtype)
        return name in base and stored.dtype == base[name].dtype and torch.equal(stored, base[name])

    return [name for name in tensors if not is_equal(name)]
