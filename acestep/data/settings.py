"""Under which settings a store was encoded: which autoencoder, how; and what differs where two stores do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn

from acestep.files import atomic
from acestep.types import Autoencoder

FORMAT = 1
SETTINGS_FILE = "store.json"
DEFAULT_SETTINGS = {"loudness": "none"}
"""What a store made before a setting existed was made with."""

Settings = dict[str, Any]


def autoencoder_settings(autoencoder: Autoencoder) -> Settings:
    """What identifies ``autoencoder`` as an encoder: class, rates, ``config`` if it has one, a hash of its weights.

    Of one with a part named ``encoder``, that part's weights alone are hashed: a decoder that is trained further leaves
    latents as they are. Weights are hashed as float32, by name, so that the precision of a copy on a device does not
    matter where it holds the same numbers.
    """
    if not isinstance(autoencoder, nn.Module):
        raise TypeError(f"need an nn.Module to hash its weights, got {type(autoencoder).__name__}")
    digest = hashlib.sha256()
    encoder = getattr(autoencoder, "encoder", autoencoder)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    config = getattr(autoencoder, "config", None)
    return {
        "class": type(autoencoder).__name__,
        "sample_rate": autoencoder.sample_rate,
        "hop": autoencoder.hop,
        "latent_channels": autoencoder.latent_channels,
        "config": json.loads(json.dumps(asdict(config))) if is_dataclass(config) else {},
        "weights": digest.hexdigest()[:16],
    }


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One phrase for each setting of ``wanted`` that ``stored`` has otherwise."""
    found = []
    for key, value in wanted.items():
        if isinstance(value, Mapping):
            found += [f"{key}.{phrase}" for phrase in differences(stored.get(key, {}), value)]
        elif stored.get(key) != value:
            found.append(f"{key} is {stored.get(key)!r}, not {value!r}")
    return found


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short hash of ``settings``."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_settings(folder: Path) -> Settings:
    """The settings of the store in ``folder``."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise ValueError(
            f"store={folder}: not a latent store; make one with `python -m acestep preprocess SONGS {folder}`"
        )
    settings: Settings = json.loads(path.read_text(encoding="utf-8"))
    return DEFAULT_SETTINGS | settings


def write_settings(folder: Path, settings: Settings) -> None:
    """State ``settings`` for the store in ``folder``, which is made if it is not there."""
    with atomic(folder / SETTINGS_FILE) as aside:
        aside.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
